"""Turns a worker to the checkpoint that needs it most: reads what waits and who else is there, chooses, and makes ready.

`worker.fleet.choice` decides, `worker.residency` brings weights nearer, `OpenCheckpoints` is what slots claim of. One thread.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from threading import Event, Thread

import structlog

from shared.errors import DatabaseUnavailable, FarmError
from shared.fleet import holdings
from shared.fleet.holdings import Holding
from shared.infra.db import Database
from worker.bundle import DeviceCheckpoints
from worker.fleet.choice import choose, hands
from worker.fleet.claimable import doomed, is_loadable, loadable
from worker.fleet.demand import demand
from worker.fleet.homes import homes
from worker.fleet.members import Member, Roster
from worker.fleet.waiting import Waiting, waiting
from worker.slots.attempts import OLDEST_LEVEL_EVERY
from worker.slots.doorbells import HeardDoorbells
from worker.slots.open_checkpoints import OpenCheckpoints

LOOK_S = 1.0  # the least time that a job may wait before a worker turns to it (`worker.fleet.choice`)
APART_S = 0.2  # between two looks, however often the worker is woken: each costs the database some claims
FLEET_S = 5.0  # how old what is known of other workers and of demand may be

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KnownFleet:
    """Who could render what, as of `read_at`: workers, the homes of each checkpoint, and what jobs have named lately."""

    members: Sequence[Member] = ()
    homes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    wanted: Collection[str] = ()
    read_at: float = float("-inf")

    @property
    def speed(self) -> float | None:
        """The mean cost a second of those workers that have measured it."""
        known = [one.speed for one in self.members if one.speed]
        return sum(known) / len(known) if known else None


class Turning:
    """Keeps the right checkpoints open on one worker. `look` has slots look for jobs; `is_idle` tells whether none runs."""

    def __init__(
        self,
        db: Database,
        worker_id: str,
        residency: DeviceCheckpoints,
        opened: OpenCheckpoints,
        *,
        doorbells: HeardDoorbells,
        look: Callable[[], None],
        is_idle: Callable[[], bool],
        silent_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._worker_id = worker_id
        self._residency = residency
        self._opened = opened
        self._doorbells = doorbells
        self._look = look
        self._is_idle = is_idle
        self._silent_after_s = silent_after_s
        self._clock = clock
        self._roster = Roster(silent_after_s=silent_after_s)
        self._fleet = KnownFleet()
        self._turned_at = float("-inf")
        self._considered = count(1)
        self._woken = Event()
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="turning", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Turn to nothing else; a load that runs is waited for briefly."""
        self._stopping.set()
        self._woken.set()
        self._thread.join(timeout=5)

    def wake(self) -> None:
        """Consider at once: a doorbell led to no job, or a job has ended."""
        self._woken.set()

    def consider(self) -> None:
        """Choose once, and turn if that is due."""
        holdings = self._residency.holdings()
        library, hopeless = loadable(holdings), doomed(holdings, self._others(), self._fleet.wanted)
        self._opened.close(*(name for name in self._opened.names if name not in library))
        if library.keys() | hopeless <= set(self._opened.names):
            self._opened.doom(())
            self._doorbells.hear(self._opened.names)
            return
        fleet = self._seen()
        mine = [name for name in library if self._worker_id in fleet.homes.get(name, ())]
        self._doorbells.hear({*mine, *self._opened.names})
        with self._db.transaction() as session:
            what_waits = waiting(session, self._worker_id, sorted(library.keys() | hopeless))
        lost = [one.checkpoint for one in what_waits if one.checkpoint in hopeless]
        what_waits = [one for one in what_waits if one.checkpoint in library]
        self._opened.doom(lost)
        chosen = self._chosen(fleet, library, what_waits)
        if chosen != self._opened.names:
            self._turn(chosen, fleet, {one.checkpoint: one for one in what_waits}, library)
        elif lost or any(one.checkpoint in chosen for one in what_waits):
            self._look()  # their doorbells may have been heard while others were open

    def _chosen(
        self, fleet: KnownFleet, library: Mapping[str, Holding], what_waits: Sequence[Waiting]
    ) -> tuple[str, ...]:
        opened = self._opened.names
        me = next((one for one in fleet.members if one.id == self._worker_id), None)
        if me is None:  # not announced yet, drained or unfit: stay
            return opened
        me = replace(me, resident=opened[0] if opened else me.resident, library=frozenset(library))
        chosen = choose(
            me,
            fleet.members,
            fleet.homes,
            what_waits,
            open_now=opened,
            price_s=lambda name: library[name].price_s if name in library else float("inf"),
            idle=self._is_idle(),
            stayed_s=self._clock() - self._turned_at,
            oldest_level=next(self._considered) % OLDEST_LEVEL_EVERY == 0,
        )
        return tuple(name for name in chosen if name in library)  # what is resident may have no file any more

    def _turn(
        self,
        chosen: tuple[str, ...],
        fleet: KnownFleet,
        what_waits: Mapping[str, Waiting],
        library: Mapping[str, Holding],
    ) -> None:
        """Bring what is chosen nearer, while the present work goes on; then claim of it."""
        for name in chosen:
            if name in self._opened.names:
                continue
            at_most = max(1, len(fleet.homes.get(name, ())))
            if name in what_waits and fleet.speed:
                at_most = hands(what_waits[name], speed=fleet.speed, price_s=library[name].price_s)
            if not self._is_ready(name, at_most=at_most):
                return
        self._opened.open(chosen)
        self._turned_at = self._clock()
        with self._db.transaction() as session:
            holdings.turned(session, self._worker_id, chosen[0])
        log.info("worker.turned", checkpoint=chosen[0], opened=len(chosen))
        self._look()

    def _is_ready(self, name: str, *, at_most: int) -> bool:
        """Say what is intended, and load it. False if others are at it, or if its jobs are not this worker's to fail."""
        with self._db.transaction() as session:
            if not holdings.intend(
                session, self._worker_id, name, silent_after_s=self._silent_after_s, at_most=at_most
            ):
                return False
        try:
            self._residency.bring(name)
        except FarmError as error:
            log.warning("checkpoint.not_loaded", checkpoint=name, **error.log_fields)
            if is_loadable(name, self._others()) or name not in loadable(self._residency.holdings()):
                self._give_up()
                return False
            # Nobody can, for a reason that may pass: its jobs are claimed, and tried.
        return True

    def _others(self) -> Sequence[Member]:
        return [one for one in self._fleet.members if one.id != self._worker_id]

    def _give_up(self) -> None:
        with self._db.transaction() as session:
            holdings.give_up(session, self._worker_id)

    def _seen(self) -> KnownFleet:
        if self._clock() - self._fleet.read_at >= FLEET_S:
            with self._db.transaction() as session:
                alive = self._roster.members(session)
                wanted = demand(session)
            named = {name for name, cost in wanted.items() if cost}
            self._fleet = KnownFleet(alive, homes(wanted, alive), named, self._clock())
        return self._fleet

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.wait(LOOK_S)
            self._woken.clear()
            try:
                if not self._stopping.is_set():
                    self.consider()
            except DatabaseUnavailable as error:
                log.warning("turning.not_considered", **error.log_fields)
            except Exception:  # whatever it was, the next time may do
                log.exception("turning.crashed")
            self._stopping.wait(APART_S)
