"""`python -m tests.audit`: looks the pinned versions up among known vulnerabilities, where a service of them answers.

Offline, or behind an index that serves none, it says that nothing was looked up and succeeds: no answer is no finding.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PINS = Path(__file__).parents[1] / "constraints.txt"
TIMEOUT_S = 300.0


def main() -> int:
    """Audit and report; 1 when a pinned version is known to be vulnerable."""
    with TemporaryDirectory() as folder:
        # A service that does not know the first will hardly know the others: one question instead of hundreds.
        first = Path(folder) / "first.txt"
        first.write_text(next(line for line in PINS.read_text().splitlines(keepends=True) if "==" in line))
        answers, why = ask(first)
    if not _looked_up(answers):
        say(
            f"audit: skipped, no service of known vulnerabilities answers here ({why or 'it does not know the package'})"
        )
        return 0
    answers, why = ask(PINS)
    found = findings(answers)
    for line in found:
        say(line)
    say(f"audit: {len(found)} known vulnerabilities in {len(_looked_up(answers))} of {len(answers)} pinned packages")
    return 1 if found else 0


def ask(requirements: Path) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Return what pip-audit says of each package; none, and why, when it could not ask."""
    options = ["--no-deps", "--disable-pip", "--timeout", "5", "--progress-spinner", "off", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        return json.loads(done.stdout)["dependencies"], ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], type(error).__name__
    except ValueError:
        return [], (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]


def findings(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each vulnerability, with the versions that mend it."""
    return [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for one in _looked_up(answers)
        for hole in one["vulns"]
    ]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _looked_up(answers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [one for one in answers if "skip_reason" not in one]


if __name__ == "__main__":
    sys.exit(main())
