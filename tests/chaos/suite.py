"""One run: start a farm, load it, break it, wait for it to settle, gather the history, judge it."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos import farm, hooks, recorder, rollcall, steady
from tests.chaos.checker import Violation, check
from tests.chaos.clients import Client, Plan
from tests.chaos.farm import Shape, Stage
from tests.chaos.history import Heard, History, Seen, Version
from tests.chaos.hooks import Receiver
from tests.chaos.nemesis import Nemesis, Strength
from tests.chaos.report import report
from tests.chaos.sketch import POISON

# A farm in which nothing at all has moved for so long is stuck; the lease of a webhook whose courier died lasts for half of it.
STUCK_S = 60.0
SWEPT_S = 30.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What to put a farm through. `minutes` is how long clients submit; faults end a little before."""

    seed: int
    jobs: int
    faults: int
    minutes: float
    shape: Shape
    strength: Strength
    clients: int = 8
    poison: int = 0
    # Of the workers' leases; with it, the farm's throughput is watched after the storm while it loses one more worker.
    lease_s: float | None = None


@dataclass(slots=True)
class Verdict:
    """The figures and what they rest on."""

    figures: dict[str, Any]
    violations: list[Violation] = field(default_factory=list)


def run(trial: Trial, folder: Path, say: Callable[[str], None]) -> Verdict:
    """Return the verdict; what led to it stays in `folder`: logs, faults.jsonl, seen.jsonl, versions.jsonl, heard.jsonl."""
    began = time.monotonic()
    with hooks.receiving() as receiver, farm.running(folder / "farm", trial.shape, trial.seed) as stage:
        say(f"the farm is up after {time.monotonic() - began:.0f} s; seed {trial.seed}")
        nemesis, clients, is_settled = _storm(trial, stage, receiver, folder, say)
        history = _gathered(stage, nemesis, clients, receiver)
        refused = _refused(stage)
        deaf = list(rollcall.absent(stage, trial.shape)) if is_settled else []
        loss = steady.loss(stage, trial.shape, lease_s=trial.lease_s) if is_settled and trial.lease_s else None
    _write(folder / "seen.jsonl", history.seen)
    _write(folder / "versions.jsonl", history.versions)
    _write(folder / "heard.jsonl", history.heard)
    violations = check(history) + deaf
    if not is_settled:
        violations.append(Violation("stuck", f"nothing moved for {STUCK_S:.0f} s"))
    if loss and not loss.is_over:
        violations.append(Violation("slow_after_a_loss", str(loss)))
    figures = report(
        history,
        violations,
        seed=trial.seed,
        minutes=round((time.monotonic() - began) / 60, 1),
        zombie_writes_refused=refused,
        throughput_after_loss=asdict(loss) if loss else None,
    )
    return Verdict(figures, violations)


def _storm(
    trial: Trial, stage: Stage, receiver: Receiver, folder: Path, say: Callable[[str], None]
) -> tuple[Nemesis, list[Client], bool]:
    stop_faults, stop_clients = threading.Event(), threading.Event()
    log = folder / "faults.jsonl"
    log.unlink(missing_ok=True)
    load_s = trial.minutes * 60
    nemesis = Nemesis(stage, trial.seed, trial.faults, load_s * 0.9, trial.strength, log, stop_faults)
    share, rest = divmod(trial.jobs, trial.clients)
    clients = [
        Client(
            number,
            stage.url,
            trial.seed,
            Plan(share + (number < rest), load_s, trial.poison, receiver.choice),
            stop_clients,
        )
        for number in range(trial.clients)
    ]
    threads = [threading.Thread(target=client.run, name=f"client-{client.number}") for client in clients]
    breaking = threading.Thread(target=nemesis.run, name="nemesis")
    try:
        for thread in (*threads, breaking):
            thread.start()
        is_settled = _watch(stage, [*threads, breaking], lambda: _progress(nemesis, clients), say)
        if nemesis.crashed:
            raise nemesis.crashed[0]
        return nemesis, clients, is_settled
    finally:
        stop_faults.set()
        breaking.join()
        stop_clients.set()
        for thread in threads:
            thread.join()


def _watch(
    stage: Stage, threads: list[threading.Thread], progress: Callable[[], str], say: Callable[[str], None]
) -> bool:
    """Wait until load and faults are over, every job has ended and every webhook has arrived; False when nothing moves."""
    moves, moved_at, said_at = -1, time.monotonic(), time.monotonic()
    while True:
        now = time.monotonic()
        with suppress(psycopg.Error):  # the nemesis may be at the database right now
            alive = any(thread.is_alive() for thread in threads)
            if not alive and stage.recorder.unfinished() == 0 == stage.recorder.undelivered():
                return True
            found = stage.recorder.moves()
            if found != moves:
                moves, moved_at = found, now
        if now - moved_at > STUCK_S:
            return False
        if now - said_at > 30:
            said_at = now
            say(progress())
        time.sleep(0.5)


def _progress(nemesis: Nemesis, clients: list[Client]) -> str:
    submitted = sum(one.act == "submit" and one.status == 202 for client in clients for one in list(client.seen))
    return f"{submitted} jobs accepted, {len(nemesis.done)} faults done"


def _gathered(stage: Stage, nemesis: Nemesis, clients: list[Client], receiver: Receiver) -> History:
    record = stage.recorder
    shown = record.shown()
    return History(
        versions=record.versions(),
        seen=[one for client in clients for one in client.seen],
        shown=shown,
        objects=recorder.stored(stage.bucket),
        kept=stage.swept(SWEPT_S),
        told=record.told(),
        heard=list(receiver.heard),
        faults=sorted(nemesis.done, key=lambda fault: fault.began),
        images_wanted=record.images_wanted(),
        poisoned=record.poisoned(POISON),
        checkpoints=record.checkpoints(),
        painted=recorder.painted(stage.bucket, shown),
        laid=list(stage.shelves.laid),
        spoiled=list(stage.shelves.spoiled),
    )


def _refused(stage: Stage) -> int:
    """Count the acts of stale attempts that matched no row, as the workers' logs tell: successes, failures, heartbeats."""
    return sum(
        any(event in line for event in ('"job.superseded"', '"lease.lost"'))
        or ('"job.attempt_failed"' in line and '"state": null' in line)
        for line in stage.log_lines("gpu")
    )


def _write(file: Path, values: Sequence[Seen] | Sequence[Version] | Sequence[Heard]) -> None:
    with file.open("w") as out:
        for value in values:
            out.write(json.dumps(asdict(value), default=str) + "\n")
