"""`python -m tests.packages`: installs what tests need of the system's packages, or says what will be skipped."""

import os
import shutil
import subprocess
import sys

TIMEOUT_S = 300
# A program under its names, its package, and what is skipped without it.
WANTED = ((("chromium", "chromium-browser", "google-chrome"), "chromium", "the console's tests in a browser"),)


def main() -> int:
    """Install what can be; never fails, for tests that lack a program are skipped."""
    for names, package, tests in WANTED:
        if not _has(names) and not (_install(package) and _has(names)):
            print(f"No {package} here: {tests} will be skipped. Install the system's package {package}.")  # noqa: T201
    return 0


def _has(names: tuple[str, ...]) -> bool:
    return any(shutil.which(name) for name in names)


def _install(package: str) -> bool:
    """Try, where packages are Debian's and may be installed without asking."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    print(f"Installing the system's package {package} ...", flush=True)  # noqa: T201
    command = ["apt-get", "install", "--yes", "--no-install-recommends", "-qq", package]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
