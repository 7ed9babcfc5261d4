"""Nemesis: injects faults in a seeded random order; each fault is one function that causes it, ends it and records both times.

Faults of different parts overlap; a part has at most one fault at a time.
"""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import UUID

import psutil
import psycopg

from shared.errors import FarmError
from tests.chaos import crowd, hooks, marked
from tests.chaos.farm import Stage
from tests.chaos.history import Fault
from tests.chaos.proxy import Mode
from tests.support.freezing import stopped
from tests.support.waiting import until

RESTART_S = 60.0  # a part that is gone for longer than this will not come back
AMBUSH_S = 10.0
LANES = 6
SILENT = 8

# How often each kind comes up, relative to the others.
WEIGHTS: Mapping[str, int] = {
    "gpu_kill": 12,
    "gpu_kill_claimed": 10,
    "gpu_kill_step": 14,
    "gpu_kill_upload": 10,
    "gpu_kill_stored": 8,
    "gpu_kill_load": 6,
    "gpu_kill_swap": 8,
    "gpu_zombie": 6,
    "gpu_drain": 10,
    "courier_kill": 12,
    "courier_silence": 4,
    "api_kill": 8,
    "api_bodies": 4,
    "redis_kill": 8,
    "redis_flush": 10,
    "redis_hole": 4,
    "redis_full": 4,
    "postgres_restart": 6,
    "postgres_kill": 3,
    "postgres_hole": 3,
    "postgres_crowd": 3,
    "s3_kill": 4,
    "s3_errors": 6,
    "s3_hole": 3,
    "s3_slow": 4,
    "s3_crowd": 3,
    "file_remove": 5,
    "file_replace": 5,
    "file_cut": 4,
    "file_garble": 4,
    "file_flip": 4,
    "copy_remove": 4,
    "copy_replace": 4,
    "copy_cut": 4,
}
TRAPS: Mapping[str, str] = {
    "gpu_kill_claimed": "trap for claims",
    "gpu_kill_step": "trap for steps",
    "gpu_kill_load": "trap for loads",
    "gpu_kill_swap": "trap for swaps",
    "gpu_kill_upload": "trap for uploads",
    "gpu_kill_stored": "trap for uploads",
}


class Missed(FarmError):
    """The fault found nothing to hit."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How long faults last, in seconds: a paused worker, a broken dependency."""

    zombie_s: float
    outage_s: float


@dataclass(slots=True)
class Nemesis:
    """Draws faults and does them, `faults` in all, evenly over a time. `done` is the log."""

    stage: Stage
    seed: int
    faults: int
    duration_s: float
    strength: Strength
    log: Path
    stop: threading.Event
    done: list[Fault] = field(default_factory=list)
    crashed: list[BaseException] = field(default_factory=list)
    _busy: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Return when every fault has been done and undone, or when told to stop. A fault that missed is drawn anew."""
        rng = random.Random(f"{self.seed}/nemesis")
        began = time.monotonic()
        with ThreadPoolExecutor(LANES, thread_name_prefix="nemesis") as lanes:
            waiting = plan(rng, self.faults)
            under_way: set[object] = set()
            while not self.stop.is_set() and len(self.done) < self.faults:
                due = self.faults * (time.monotonic() - began) / self.duration_s
                if len(self.done) + len(under_way) < min(due, self.faults) and len(under_way) < LANES:
                    kind = waiting.pop(0) if waiting else plan(rng, 1)[0]
                    future = lanes.submit(self._strike, kind, rng.random())
                    under_way.add(future)
                    future.add_done_callback(under_way.discard)
                else:
                    self.stop.wait(0.05)

    def _strike(self, kind: str, draw: float) -> None:
        try:
            with self._alone(kind, draw) as target:
                fault = ACTS[kind](self, kind, target)
        except Missed:
            return
        except BaseException as error:
            self.crashed.append(error)
            raise
        with self._lock:
            self.done.append(fault)
            with self.log.open("a") as log:
                log.write(json.dumps(asdict(fault)) + "\n")

    @contextmanager
    def _alone(self, kind: str, draw: float) -> Iterator[str]:
        """Choose a target for a kind of fault and keep others away from it."""
        with self._lock:
            free = [name for name in self._targets(kind) if name not in self._busy]
            if not free:
                raise Missed
            target = free[int(draw * len(free))]
            self._busy.add(target)
        try:
            yield target
        finally:
            with self._lock:
                self._busy.discard(target)

    def _targets(self, kind: str) -> list[str]:
        """Name what a kind of fault may hit now; for a trap, the trap itself. One worker at least is left in peace."""
        if kind in TRAPS:
            return [TRAPS[kind]]
        if kind.startswith(("file", "copy")):
            return list(marked.NAMES)
        names = self.stage.names(kind.split("_")[0])
        return [] if kind.startswith("gpu") and len(self._busy & set(names)) >= len(names) - 1 else names

    def kill(self, kind: str, target: str) -> Fault:
        """kill -9, whatever it is doing."""
        return self._end(kind, target, signal.SIGKILL)

    def restart(self, kind: str, target: str) -> Fault:
        """End an engine as an administrator does, with clients connected."""
        return self._end(kind, target, signal.SIGINT)

    def drain(self, kind: str, target: str) -> Fault:
        """SIGTERM, and time how long the worker takes to leave."""
        pid, began = self._signalled(target, signal.SIGTERM)
        self._gone(target, pid)
        now = time.time()
        self._back(target)
        return Fault(kind, began, began, target, drain_s=round(now - began, 3))

    def ambush(self, kind: str, _target: str) -> Fault:
        """Have whichever worker comes to a moment first die in it."""
        moment = kind.removeprefix("gpu_kill_")
        trap = self.stage.ambush / moment
        trap.touch()
        try:
            until(lambda: not trap.exists() or self.stop.is_set(), AMBUSH_S)
        finally:
            missed = trap.exists()
            trap.unlink(missing_ok=True)
        if missed:
            raise Missed
        began = time.time()
        (left,) = self.stage.ambush.glob(f"{moment}.*")
        left.unlink()
        return Fault(kind, began, began, left.suffix[1:])

    def ambush_upload(self, kind: str, _target: str) -> Fault:
        """Kill the worker whose upload comes first, in the middle of the body or between body and row."""
        proxy, sprung = self.stage.proxies["s3"], threading.Event()
        victims: list[str] = []

        def spring(job: str) -> None:
            worker = self.stage.recorder.worker_of(UUID(job))
            if worker is not None and self.stage.send(worker.split("@")[0], signal.SIGKILL) is not None:
                victims.append(worker.split("@")[0])
            sprung.set()

        proxy.trap(kind.removeprefix("gpu_kill_"), spring)
        until(lambda: sprung.is_set() or self.stop.is_set(), AMBUSH_S)
        if proxy.disarm() or not sprung.wait(AMBUSH_S) or not victims:
            raise Missed
        now = time.time()
        return Fault(kind, now, now, victims[0])

    def zombie(self, kind: str, target: str) -> Fault:
        """Freeze a worker until others have its jobs, then let it go on where it was."""
        pid, began = self._signalled(target, signal.SIGSTOP)
        try:
            self.stop.wait(self.strength.zombie_s)
        finally:
            with suppress(ProcessLookupError):  # an ambush may have met it meanwhile
                os.kill(pid, signal.SIGCONT)
        return Fault(kind, began, time.time(), target)

    def silence(self, kind: str, _target: str) -> Fault:
        """Have every end of a job told to receivers, too, that take the connection and never answer."""
        began = time.time()
        with hooks.silence(SILENT) as urls:
            if not self._at_database(lambda: self.stage.recorder.register(urls)):
                raise Missed
            self.stop.wait(self.strength.outage_s)
        healed = time.time()
        if not until(lambda: self._at_database(lambda: self.stage.recorder.unregister(urls)), RESTART_S):
            raise TimeoutError(f"the receivers could not be taken away within {RESTART_S} s")
        return Fault(kind, began, healed)

    def flush(self, kind: str, _target: str) -> Fault:
        """FLUSHALL: no doorbell, no event, no lock is left."""
        began = time.time()
        try:
            self.stage.flush_redis()
        except OSError as error:
            raise Missed from error
        return Fault(kind, began, began)

    def misbehave(self, kind: str, target: str) -> Fault:
        """Put a broken network, or a broken store, before an engine for a while."""
        mode = Mode(kind.split("_")[1])
        began = time.time()
        with self.stage.proxies[target].misbehaving(mode):
            self.stop.wait(self.strength.outage_s)
        return Fault(kind, began, time.time())

    def freeze(self, kind: str, target: str) -> Fault:
        """Stop all processes of an engine while a crowd of clients reads what only it can answer."""
        path = self._read_from(target)
        pid = self.stage.pid(target)
        if pid is None:
            raise Missed
        began = time.time()
        with suppress(psutil.NoSuchProcess), stopped(psutil.Process(pid)), crowd.reading(self.stage.url, path):
            self.stop.wait(self.strength.outage_s)
        return Fault(kind, began, time.time())

    def park(self, kind: str, _target: str) -> Fault:
        """Have clients begin large bodies and fall silent."""
        began = time.time()
        try:
            with crowd.parked_bodies(self.stage.url):
                self.stop.wait(self.strength.outage_s)
        except OSError as error:
            raise Missed from error
        return Fault(kind, began, time.time())

    def fill(self, kind: str, _target: str) -> Fault:
        """Leave Redis no memory for a write."""
        began = time.time()
        try:
            self.stage.limit_redis(1)
            self.stop.wait(self.strength.outage_s)
        except OSError as error:
            raise Missed from error
        finally:
            # One that was started again meanwhile has no limit.
            until(self.stage.unlimit_redis, RESTART_S)
        return Fault(kind, began, time.time())

    def spoil(self, kind: str, target: str) -> Fault:
        """Remove or damage a checkpoint's file, on all workers or on one, and put it back after a while."""
        began = time.time()
        with self.stage.shelves.spoiling(kind.split("_")[1], target, self._shelves(kind)):
            self.stop.wait(self.strength.outage_s)
        return Fault(kind, began, time.time())

    def replace(self, kind: str, target: str) -> Fault:
        """Put other weights under a checkpoint's name, on all workers or on one."""
        began = time.time()
        self.stage.shelves.replace(target, self._shelves(kind))
        return Fault(kind, began, time.time())

    def _shelves(self, kind: str) -> Sequence[str]:
        """Return the workers whose files are hit."""
        workers = self.stage.shelves.workers
        return workers if kind.startswith("file") else [workers[len(self.done) % len(workers)]]

    def _read_from(self, engine: str) -> str:
        """Return a path that is read from an engine."""
        if engine == "postgres":
            return "/v1/jobs"
        with suppress(psycopg.Error):  # it may be away just now
            if found := self.stage.recorder.a_success():
                return f"/v1/jobs/{found}/images/0/thumbnail"
        raise Missed

    def _at_database(self, act: Callable[[], None]) -> bool:
        """Do something at the database, which may be away just now; whether it was done."""
        try:
            act()
        except psycopg.Error:
            return False
        return True

    def _end(self, kind: str, target: str, number: signal.Signals) -> Fault:
        pid, began = self._signalled(target, number)
        self._gone(target, pid)
        gone = time.time()
        self._back(target)
        return Fault(kind, began, gone, target if target.startswith("gpu") else None)

    def _signalled(self, target: str, number: signal.Signals) -> tuple[int, float]:
        began = time.time()
        pid = self.stage.send(target, number)
        if pid is None:
            raise Missed
        return pid, began

    def _gone(self, target: str, pid: int) -> None:
        if not self.stage.until_gone(target, pid, RESTART_S):
            raise TimeoutError(f"{target} did not go within {RESTART_S} s")

    def _back(self, target: str) -> None:
        if not until(lambda: self.stage.pid(target) is not None, RESTART_S):
            raise TimeoutError(f"{target} did not come back within {RESTART_S} s")


def plan(rng: random.Random, count: int) -> list[str]:
    """Draw kinds by their weights, each at least once where there is room for all."""
    kinds = list(WEIGHTS)
    drawn = kinds[:count] if count >= len(kinds) else []
    drawn += rng.choices(kinds, weights=list(WEIGHTS.values()), k=count - len(drawn))
    rng.shuffle(drawn)
    return drawn


ACTS: Mapping[str, Callable[[Nemesis, str, str], Fault]] = {
    "gpu_kill": Nemesis.kill,
    "gpu_kill_claimed": Nemesis.ambush,
    "gpu_kill_step": Nemesis.ambush,
    "gpu_kill_upload": Nemesis.ambush_upload,
    "gpu_kill_stored": Nemesis.ambush_upload,
    "gpu_kill_load": Nemesis.ambush,
    "gpu_kill_swap": Nemesis.ambush,
    "gpu_zombie": Nemesis.zombie,
    "gpu_drain": Nemesis.drain,
    "courier_kill": Nemesis.kill,
    "courier_silence": Nemesis.silence,
    "api_kill": Nemesis.kill,
    "api_bodies": Nemesis.park,
    "redis_kill": Nemesis.kill,
    "redis_flush": Nemesis.flush,
    "redis_hole": Nemesis.misbehave,
    "redis_full": Nemesis.fill,
    "postgres_restart": Nemesis.restart,
    "postgres_kill": Nemesis.kill,
    "postgres_hole": Nemesis.misbehave,
    "postgres_crowd": Nemesis.freeze,
    "s3_kill": Nemesis.kill,
    "s3_errors": Nemesis.misbehave,
    "s3_hole": Nemesis.misbehave,
    "s3_slow": Nemesis.misbehave,
    "s3_crowd": Nemesis.freeze,
    "file_remove": Nemesis.spoil,
    "file_replace": Nemesis.replace,
    "file_cut": Nemesis.spoil,
    "file_garble": Nemesis.spoil,
    "file_flip": Nemesis.spoil,
    "copy_remove": Nemesis.spoil,
    "copy_replace": Nemesis.replace,
    "copy_cut": Nemesis.spoil,
}
