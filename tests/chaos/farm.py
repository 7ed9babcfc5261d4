"""The farm under test: engines behind proxies, an api, two couriers, gpu workers with a simulated device; all supervised."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError

from deploy.standalone import folder as folders
from deploy.standalone import ports, postgres, processes, redis, s3
from deploy.standalone.child import Event, Restarts
from deploy.standalone.program import Program
from deploy.standalone.serving import PlannedWorker
from deploy.standalone.supervisor import Supervisor
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.settings import Settings
from tests.chaos import proxy, recorder
from tests.chaos.proxy import Proxy
from tests.chaos.recorder import Recorder
from tests.chaos.shelves import Shelves
from tests.chaos.sketch import AMBUSH_VARIABLE, NAME_VARIABLE, STEP_VARIABLE
from tests.support.waiting import until
from worker.courier import maintenance

HOST = "127.0.0.1"
COURIERS = 2
RAM_BYTES = 3 * 3 * 2**19  # of three checkpoints, each of three parts of half a megabyte


@dataclass(frozen=True, slots=True)
class Shape:
    """How large and how quick a farm is. `step_s` is the time of one denoising step; `settings` are FARM_* variables."""

    workers: int
    slots: int
    step_s: float
    settings: Mapping[str, str]


class Stage:
    """A running farm and everything that a nemesis may lay hands on."""

    def __init__(
        self,
        supervisor: Supervisor,
        url: str,
        proxies: Mapping[str, Proxy],
        direct: Mapping[str, str],
        folder: Path,
        shelves: Shelves,
    ) -> None:
        self._supervisor = supervisor
        self.url = url
        self.proxies = proxies
        self.recorder = Recorder(direct["FARM_DATABASE_URL"])
        self.folder = folder
        self.shelves = shelves
        self._direct = direct

    @property
    def bucket(self) -> Path:
        return self.folder / s3.NAME / s3.BUCKET

    @property
    def ambush(self) -> Path:
        return self.folder / "ambush"

    def pid(self, name: str) -> int | None:
        return self._supervisor.pids().get(name)

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self._supervisor.pids() if name.startswith(prefix))

    def send(self, name: str, number: signal.Signals) -> int | None:
        """Signal a part; returns its pid, or None while it does not run."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, number)
        return pid

    def until_gone(self, name: str, pid: int, timeout_s: float) -> bool:
        """Wait until a part is no longer that process; whether it happened in time."""
        return until(lambda: self.pid(name) != pid, timeout_s)

    def flush_redis(self) -> None:
        with Redis.from_url(self._direct["FARM_REDIS_URL"], socket_timeout=5) as client:
            client.flushall()

    def limit_redis(self, max_bytes: int) -> None:
        """Let Redis take no more memory than so many bytes; 0 for as much as there is. Raises `OSError`."""
        with Redis.from_url(self._direct["FARM_REDIS_URL"], socket_timeout=5) as client:
            try:
                client.config_set("maxmemory", max_bytes)
            except RedisError as error:
                raise OSError(str(error)) from error

    def unlimit_redis(self) -> bool:
        """Let Redis take memory again; whether it is there to be told."""
        try:
            self.limit_redis(0)
        except OSError:
            return False
        return True

    def swept(self, timeout_s: float) -> frozenset[str]:
        """Walk the bucket as couriers do, past every proxy, until nothing more is found; return the keys that are left.

        A worker that was frozen while it wrote may only now be done with it.
        """
        settings = Settings.model_validate(
            {name.removeprefix("FARM_").lower(): value for name, value in self._direct.items()}
        )
        with closing(Database(settings, pool_size=1)) as db:
            shown = {image.key for image in self.recorder.shown()}
            storage = Storage(settings)

            def is_clean() -> bool:
                maintenance.sweep_orphans(db, storage, {})
                return recorder.kept(self.bucket) <= shown

            until(is_clean, timeout_s)
        return recorder.kept(self.bucket)

    def log_lines(self, prefix: str) -> Iterator[str]:
        """Read the logs of all parts of a name, older files too."""
        for file in sorted((self.folder / "logs").glob(f"{prefix}*")):
            with file.open(errors="replace") as lines:
                yield from lines


@contextmanager
def running(
    data_dir: Path, shape: Shape, seed: int, on_event: Callable[[Event], None] = lambda _event: None
) -> Iterator[Stage]:
    """Run a farm on an empty folder while the block lasts."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    with ExitStack() as stack:
        folder = stack.enter_context(folders.hold(data_dir))
        engines = {
            "postgres": postgres.engine(folder, environ, lambda _line: None),
            "redis": redis.engine(folder, environ),
            "s3": s3.engine(folder, environ),
        }
        direct = {name: value for engine in engines.values() for name, value in engine.env.items()}
        urls = {"postgres": "FARM_DATABASE_URL", "redis": "FARM_REDIS_URL", "s3": "FARM_S3_ENDPOINT_URL"}
        inner = [_port(direct[variable]) for variable in urls.values()]
        proxies = dict(zip(urls, stack.enter_context(proxy.before(*inner)), strict=True))
        reached = {
            variable: direct[variable].replace(f":{port}", f":{proxies[name].port}")
            for (name, variable), port in zip(urls.items(), inner, strict=True)
        }
        # However often the nemesis strikes, a part starts again at once.
        supervisor = stack.enter_context(
            Supervisor(folder.logs, folder.run_file, on_event, Restarts(pauses_s=(0.05,) * 10_000))
        )
        for engine in engines.values():
            for program in engine.programs:
                supervisor.start(program)
        port = ports.pick(HOST)
        shelves = Shelves(folder.path / "shelves", [f"gpu{rank}" for rank in range(shape.workers)], seed)
        stage = Stage(supervisor, f"http://{HOST}:{port}", proxies, direct, folder.path, shelves)
        stage.ambush.mkdir(exist_ok=True)
        # The receiver of webhooks is on this machine.
        loopback = {"FARM_ALLOW_PRIVATE_URLS": "true", "FARM_LOG_FORMAT": "json"}
        env = {**environ, **direct, **reached, **loopback, **shape.settings}
        supervisor.start(processes.migration(env))
        stage.recorder.install()
        supervisor.start(*_programs(env, shape, port, stage))
        yield stage


def _programs(env: Mapping[str, str], shape: Shape, port: int, stage: Stage) -> list[Program]:
    own = {
        **env,
        "FARM_RAM_BYTES": str(RAM_BYTES),
        AMBUSH_VARIABLE: str(stage.ambush),
        STEP_VARIABLE: str(shape.step_s),
    }
    couriers = [_renamed(processes.courier(env), f"courier{rank}") for rank in range(COURIERS)]
    workers = [
        processes.gpu_worker(
            own,
            PlannedWorker(
                name, shape.slots, {NAME_VARIABLE: name, "FARM_CHECKPOINT_DIR": str(stage.shelves.folder(name))}
            ),
            stage.url,
        )
        for name in stage.shelves.workers
    ]
    return [processes.api(env, HOST, port, stage.url), *couriers, *(_sketching(worker) for worker in workers)]


def _renamed(program: Program, name: str) -> Program:
    argv = tuple(part.replace(f"{program.name}@", f"{name}@") for part in program.argv)
    return replace(program, name=name, argv=argv)


def _sketching(program: Program) -> Program:
    return replace(
        program, argv=tuple("tests.chaos.swapping_gpu" if part == "worker.gpu" else part for part in program.argv)
    )


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port
