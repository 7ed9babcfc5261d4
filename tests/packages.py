"""`python -m tests.packages`: brings what tests need of Debian's packages, or says what will be skipped.

A browser and the servers that stand between farm and world are installed, none of them started as a service; of a
package that is here for one program or file, only the files are unpacked.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

TIMEOUT_S = 300
UNPACKED = Path(__file__).parents[1] / ".farm/packages"
# Where programs lie that a shell of an ordinary account does not look for: servers, and what was unpacked.
PLACES = ("/usr/sbin", str(UNPACKED / "usr/bin"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A package, what tells that it is there (programs, or a file of it), and which tests are skipped without."""

    package: str
    tests: str
    programs: tuple[str, ...] = ()
    file: str = ""
    is_installed: bool = False

    def is_here(self) -> bool:
        """Whether nothing needs to be brought."""
        return any(program(name) for name in self.programs) or bool(self.file and file(self.file))


CLOUD_CONFIG = "usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json"
WANTED = (
    Wanted(
        "chromium",
        "the console's tests in a browser",
        programs=("chromium", "chromium-browser", "google-chrome"),
        is_installed=True,
    ),
    Wanted("nginx-light", "the farm behind a path prefix", programs=("nginx",), is_installed=True),
    Wanted("pgbouncer", "the farm behind a connection pooler", programs=("pgbouncer",), is_installed=True),
    Wanted("stunnel4", "Redis over TLS", programs=("stunnel4", "stunnel"), is_installed=True),
    Wanted("prometheus", "what Prometheus says of its rules and configuration", programs=("promtool",)),
    Wanted("cloud-init", "cloud-init's own schema on the user data", file=CLOUD_CONFIG),
)


def main() -> int:
    """Bring what can be; never fails, for tests that lack something are skipped."""
    for wanted in WANTED:
        if not wanted.is_here() and not (_bring(wanted) and wanted.is_here()):
            print(f"No {wanted.package} here: skipped will be {wanted.tests}. Install Debian's {wanted.package}.")  # noqa: T201
    return 0


def program(name: str) -> str | None:
    """Return the path of a program that is installed or unpacked."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(PLACES))


def file(path: str) -> Path | None:
    """Return a package's file that is installed or unpacked; `path` starts at the root, without a slash."""
    return next((found for found in (Path("/") / path, UNPACKED / path) if found.exists()), None)


def _bring(wanted: Wanted) -> bool:
    if shutil.which("apt-get") is None:
        return False
    print(f"Fetching Debian's {wanted.package} ...", flush=True)  # noqa: T201
    bring = _install if wanted.is_installed else _unpack
    # On a new machine the lists are old or not there yet.
    return bring(wanted.package) or (
        os.geteuid() == 0 and _succeeds("apt-get", "update", "-qq") and bring(wanted.package)
    )


def _install(package: str) -> bool:
    """Try, where it may be done without asking."""
    return os.geteuid() == 0 and _succeeds("apt-get", "install", "--yes", "--no-install-recommends", "-qq", package)


def _unpack(package: str) -> bool:
    with TemporaryDirectory() as folder:
        if not _succeeds("apt-get", "download", "-qq", package, cwd=folder):
            return False
        (archive,) = Path(folder).glob("*.deb")
        UNPACKED.mkdir(parents=True, exist_ok=True)
        return _succeeds("dpkg-deb", "--extract", str(archive), str(UNPACKED))


def _succeeds(*command: str, cwd: str | None = None) -> bool:
    try:
        # Debian's scripts start no service in run level 1.
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        done = subprocess.run(command, cwd=cwd, env=quiet, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
