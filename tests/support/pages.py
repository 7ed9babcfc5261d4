"""The runbooks' commands, run as they stand on the page."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.parts import ROOT
from tests.support.waiting import LIMIT_S

PAGES = ROOT / "deploy/runbooks"
COMMAND = f"""#!/bin/sh
PYTHONPATH={ROOT} exec {sys.executable} -c 'import sys; from api.cli import main; sys.exit(main())' "$@"
"""


def shell(folder: Path, **variables: str) -> dict[str, str]:
    """Return an operator's environment: `farm` is on the PATH, by way of `folder`."""
    farm = folder / "farm"
    farm.write_text(COMMAND)
    farm.chmod(0o755)
    return {**os.environ, "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]), **variables}


def run(page: str, block: str, env: Mapping[str, str]) -> str:
    """Run a named block of a page; returns what it printed."""
    found = re.search(rf"^```sh {block}\n(.*?)^```", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    done = subprocess.run(
        ["bash", "-euc", found[1]], env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
