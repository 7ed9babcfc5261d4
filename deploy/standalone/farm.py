"""`farm up`: the whole farm on one machine. Starts Postgres, Redis and S3, migrates, then starts api, courier and gpu workers.

An engine is not started if the environment names a remote one. All options are validated before anything starts.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from deploy.standalone import folder as folders
from deploy.standalone import ports, postgres, processes, redis, s3, serving
from deploy.standalone.child import Event
from deploy.standalone.folder import DataFolder
from deploy.standalone.program import EmbeddedServer, StartFailed
from deploy.standalone.supervisor import Supervisor

__all__ = ["EmbeddedFarm", "StartFailed", "UpOptions", "engines_only"]

# A fresh database with its log takes half of it.
START_BYTES = 200e6
# Below, whatever dies has probably died of that.
LITTLE_BYTES = 50e6

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of `farm up`. `port` 0 picks a free one; `device` None means auto."""

    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: Path = Path(".farm")
    checkpoints: Sequence[Path] = ()
    workers: int | None = None
    device: str | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)


class EmbeddedFarm:
    """One running farm. `with Farm(options) as farm:` starts it and stops everything at the end.

    While it runs, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread; while it stops, they make it kill at
    once. `on_progress` gets lines for people, from any thread.
    """

    def __init__(self, options: UpOptions, on_progress: Say = lambda _line: None) -> None:
        self._options = options
        self._say = on_progress
        self._open = ExitStack()
        self._supervisor: Supervisor | None = None
        self._folder: DataFolder | None = None
        self._seen: set[str] = set()
        self._port = options.port

    @property
    def url(self) -> str:
        """URL of the api from this machine."""
        return f"http://{ports.authority(ports.local_address(self._options.host), self._port)}"

    @property
    def public_url(self) -> str:
        """URL of the api from other machines, as far as can be guessed; on a loopback address that from this one."""
        return f"http://{ports.authority(ports.public_address(self._options.host), self._port)}"

    @property
    def asks_for_keys(self) -> bool:
        """Whether clients need an API key."""
        return processes.auth(self._options.environ, self._options.host) == "keys"

    def pids(self) -> dict[str, int]:
        """Return the pids of the running processes by name."""
        return self._supervisor.pids() if self._supervisor else {}

    def start(self) -> None:
        """Start everything; return when the farm can render jobs. Raises `StartFailed`."""
        try:
            self._open.enter_context(_signals(_interrupt))
            self._start()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Wait for a signal to stop the farm. For the main thread only."""
        try:
            while True:
                signal.pause()
        except KeyboardInterrupt:
            return

    def stop(self) -> None:
        """Stop everything, engines last; a signal meanwhile kills at once. Calling it again is fine."""
        supervisor = self._supervisor
        with _signals(lambda *_: supervisor.hurry() if supervisor else None):
            self._open.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        options = self._options
        self._port = _checked_port(options)
        workers = serving.plan(options.workers, options.device, options.environ)
        served = {**options.environ, **serving.source(options.checkpoints)}
        is_here = bool(serving.here(served, self._say))
        folder = self._folder = self._open.enter_context(folders.hold(options.data_dir))
        if shortage := folder.shortage(START_BYTES):
            raise StartFailed(shortage)
        engines = _engines(folder, options, self._say)
        self._supervisor = self._open.enter_context(Supervisor(folder.logs, folder.run_file, self._hear))
        env = {**served, **_run(self._supervisor, engines)}
        if not is_here and not serving.from_bucket(env, serving.in_bucket(env)):
            env |= serving.DEMO_ENV
        # The farm itself asks its api whether workers are ready.
        env["FARM_ADMIN_KEY"] = env.get("FARM_ADMIN_KEY") or folder.secret("admin_key")
        self._supervisor.start(processes.migration(env))
        self._supervisor.start(
            processes.api(env, options.host, self._port, self.url),
            processes.courier(env),
            *(processes.gpu_worker(env, worker, self.url) for worker in workers),
        )

    def _hear(self, event: Event) -> None:
        if event.kind == "ready":
            again = " again" if event.name in self._seen else ""
            self._seen.add(event.name)
            self._say(f"{event.name} ready{again}")
        elif event.kind in {"died", "failing"}:
            shortage = self._folder.shortage(LITTLE_BYTES) if self._folder else None
            self._say("\n    ".join((event.line, *event.tail, *([shortage] if shortage else ()))))


@contextmanager
def engines_only(
    data_dir: Path, environ: Mapping[str, str] | None = None, on_event: Callable[[Event], None] = lambda _event: None
) -> Iterator[dict[str, str]]:
    """Run Postgres, Redis and S3 on a data folder; yields the FARM_* variables that reach them."""
    options = UpOptions(environ=dict(os.environ) if environ is None else environ)
    with folders.hold(data_dir) as folder:
        engines = _engines(folder, options, lambda _line: None)
        with Supervisor(folder.logs, folder.run_file, on_event) as supervisor:
            yield _run(supervisor, engines)


def _engines(folder: DataFolder, options: UpOptions, say: Say) -> list[EmbeddedServer]:
    environ = options.environ
    engines = []
    if not environ.get("FARM_DATABASE_URL"):
        engines.append(postgres.engine(folder, environ, say))
    if not environ.get("FARM_REDIS_URL"):
        engines.append(redis.engine(folder, environ))
    # AWS itself has no endpoint to name; its bucket tells that it is meant.
    if not (environ.get("FARM_S3_ENDPOINT_URL") or environ.get("FARM_S3_BUCKET")):
        engines.append(s3.engine(folder, environ, options.host))
    return engines


def _run(supervisor: Supervisor, engines: list[EmbeddedServer]) -> dict[str, str]:
    """Start engines in parallel after the programs that prepare them; return the FARM_* variables that reach them."""
    for program in (program for engine in engines for program in engine.programs[:-1]):
        supervisor.start(program)
    supervisor.start(*(engine.programs[-1] for engine in engines))
    return {name: value for engine in engines for name, value in engine.env.items()}


def _checked_port(options: UpOptions) -> int:
    """Return the api's port. Raises `StartFailed` if it is in use, before anything has started."""
    if options.port == 0:
        return ports.pick(options.host)
    try:
        ports.listen(options.host, options.port).close()
    except OSError as error:
        raise StartFailed(
            f"Port {options.port} on {options.host} cannot be used: {error.strerror}. Choose another with --port."
        ) from error
    return options.port


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, handle the signals that end a farm; a no-op outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
