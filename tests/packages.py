"""`python -m tests.packages`: brings what tests need beside the farm's own packages, or says what will be skipped.

A browser and the servers that stand between farm and world are installed from Debian, none of them started as a service; of a
package that is here for one program or file, only the files are unpacked. Generators of clients are kept apart from the farm's
environment, whose versions they do not go with.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

TIMEOUT_S = 300
UNPACKED = Path(__file__).parents[1] / ".farm/packages"
# Where programs lie that a shell of an ordinary account does not look for: servers, and what was unpacked.
PLACES = ("/usr/sbin", str(UNPACKED / "usr/bin"))


def main() -> int:
    """Bring what can be; never fails, for tests that lack something are skipped."""
    for wanted in WANTED:
        if not wanted.is_here() and not (_bring(wanted) and wanted.is_here()):
            print(f"No {wanted.package} here: skipped will be {wanted.tests}. Install {wanted.package}.")  # noqa: T201
    return 0


def program(name: str) -> str | None:
    """Return the path of a program that is installed or unpacked."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(PLACES))


def file(path: str) -> Path | None:
    """Return a package's file that is installed or unpacked; `path` starts at the root, without a slash."""
    return next((found for found in (Path("/") / path, UNPACKED / path) if found.exists()), None)


def _install(package: str) -> bool:
    """Install from Debian, where it may be done without asking. On a new machine the lists are old or not there yet."""
    install = ("apt-get", "install", "--yes", "--no-install-recommends", "-qq", package)
    return os.geteuid() == 0 and (_succeeds(*install) or (_update() and _succeeds(*install)))


def _unpack(package: str) -> bool:
    """Unpack the files of a package of Debian's."""
    with TemporaryDirectory() as folder:
        download = ("apt-get", "download", "-qq", package)
        if not (_succeeds(*download, cwd=folder) or (_update() and _succeeds(*download, cwd=folder))):
            return False
        (archive,) = Path(folder).glob("*.deb")
        UNPACKED.mkdir(parents=True, exist_ok=True)
        return _succeeds("dpkg-deb", "--extract", str(archive), str(UNPACKED))


def _update() -> bool:
    return os.geteuid() == 0 and _succeeds("apt-get", "update", "-qq")


def _from_pypi(packages: str) -> bool:
    """Install from the index of Python packages, into a folder of its own."""
    return _succeeds(
        sys.executable, "-m", "pip", "install", "-q", "--target", str(UNPACKED / "python"), *packages.split()
    )


def _from_npm(packages: str) -> bool:
    """Install from the registry of JavaScript packages, into a folder of its own."""
    folder = UNPACKED / "node"
    folder.mkdir(parents=True, exist_ok=True)
    return _succeeds(
        "npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *packages.split()
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """A package, what tells that it is there (programs, or a file of it), and which tests are skipped without."""

    package: str
    tests: str
    programs: tuple[str, ...] = ()
    file: str = ""
    bring: Callable[[str], bool] = _unpack

    def is_here(self) -> bool:
        """Whether nothing needs to be brought."""
        return any(program(name) for name in self.programs) or bool(self.file and file(self.file))


CLOUD_CONFIG = "usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json"
CLIENTS = "clients generated from the OpenAPI document"
WANTED = (
    Wanted(
        "chromium",
        "the console's tests in a browser",
        programs=("chromium", "chromium-browser", "google-chrome"),
        bring=_install,
    ),
    Wanted("nginx-light", "the farm behind a path prefix", programs=("nginx",), bring=_install),
    Wanted("pgbouncer", "the farm behind a connection pooler", programs=("pgbouncer",), bring=_install),
    Wanted("stunnel4", "Redis over TLS", programs=("stunnel4", "stunnel"), bring=_install),
    Wanted("npm", CLIENTS, programs=("npm",), bring=_install),
    Wanted(
        "openapi-typescript@7.13.0 openapi-fetch@0.17.0 typescript@5.9.3",
        CLIENTS,
        file="node/node_modules/openapi-typescript/package.json",
        bring=_from_npm,
    ),
    Wanted(
        "openapi-python-client==0.29.1",
        CLIENTS,
        file="python/openapi_python_client/__init__.py",
        bring=_from_pypi,
    ),
    Wanted("prometheus", "what Prometheus says of its rules and configuration", programs=("promtool",)),
    Wanted("cloud-init", "cloud-init's own schema on the user data", file=CLOUD_CONFIG),
)


def _bring(wanted: Wanted) -> bool:
    print(f"Fetching {wanted.package} ...", flush=True)  # noqa: T201
    return wanted.bring(wanted.package)


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
