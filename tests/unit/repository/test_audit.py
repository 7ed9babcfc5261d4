"""The look-up of known vulnerabilities: it never fails for want of an answer, and never passes over one."""

import os
import subprocess
import sys
from typing import Any

from tests import audit
from tests.support.parts import ROOT
from tests.support.waiting import LIMIT_S

ANSWERS: list[dict[str, Any]] = [
    {"name": "sound", "version": "1.0", "vulns": []},
    {"name": "holed", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1", "3.0"]}]},
    {"name": "open", "version": "1.1", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]},
    {"name": "unheard", "skip_reason": "not found"},
]


def test_offline_it_says_so_and_succeeds() -> None:
    away = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
    command = [sys.executable, "-m", "tests.audit"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **away}, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("audit: skipped")


def test_every_vulnerability_is_told_with_its_mend() -> None:
    assert audit.findings(ANSWERS) == [
        "holed 2.0: PYSEC-1, mended in 2.1, 3.0",
        "open 1.1: PYSEC-2, mended in no version yet",
    ]
