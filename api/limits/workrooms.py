"""Workrooms: the threads of the api, apart for each kind of work, so that one dependency that hangs holds up no other work.

Each room has a bounded number of places, and an owner holds no more of them than it leaves free: half of an empty room, and
less the more others hold. Who finds none waits a moment, then is refused with 503. Who holds least comes first.
"""

import asyncio
import concurrent.futures
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import ParamSpec, TypeVar

from api.limits.owners import NOBODY
from shared.errors import TooBusy

# Together with what a dependency may take to fail, an answer comes within 15 s.
PATIENCE_S = 3.0
# However much it has worked, the answer must come before its client gives up.
LONGEST_REST_S = 5.0
# So often a resting place looks whether its owner has to go on resting.
REST_LOOK_S = 0.25

# For whom the current thread works.
_owner: ContextVar[str] = ContextVar("owner", default=NOBODY)
# Seconds of processors that its work has taken in other processes.
_elsewhere_s: ContextVar[list[float] | None] = ContextVar("elsewhere_s", default=None)

P = ParamSpec("P")
T = TypeVar("T")
# Told what a piece of work took of the processors: its owner, and seconds.
Spend = Callable[[str, float], None]
# Tells how long to rest after work for an owner that took so many seconds.
Rest = Callable[[str, float], float]


def note_spent(seconds: float) -> None:
    """Note what another process took of the processors for the work of the current thread."""
    taken = _elsewhere_s.get()
    if taken is not None:
        taken.append(seconds)


class Workroom:
    """Places for one kind of work, shared out between owners. Thread-safe."""

    def __init__(
        self,
        work: str,
        places: int,
        *,
        patience_s: float = PATIENCE_S,
        spend: Spend = lambda _owner, _s: None,
        rest: Rest = lambda _owner, _s: 0,
    ) -> None:
        self._work = work
        self._free = places
        self._patience_s = patience_s
        self._spend = spend
        self._rest = rest
        self._held: Counter[str] = Counter()
        self._waiting: defaultdict[str, dict[Future[None], None]] = defaultdict(dict)
        self._lock = Lock()
        self._closing = Event()
        self._threads = ThreadPoolExecutor(places, thread_name_prefix=work)

    async def run(self, owner: str, act: Callable[P, T], /, *given: P.args, **named: P.kwargs) -> T:
        """Run a blocking function on a thread of this room, for an owner. Raises `TooBusy`, and whatever the function raises."""
        await self._enter(owner)
        context = copy_context()
        context.run(_owner.set, owner)
        elsewhere_s: list[float] = []
        context.run(_elsewhere_s.set, elsewhere_s)
        # Shielded: a caller that goes does not stop the thread, and the place is held until it ends.
        running = self._threads.submit(context.run, self._measured, owner, elsewhere_s, partial(act, *given, **named))
        return await asyncio.shield(asyncio.wrap_future(running))

    @property
    def held(self) -> dict[str, int]:
        """Places by owner."""
        with self._lock:
            return dict(self._held)

    @property
    def is_crowded(self) -> bool:
        """Whether the owner for whom the current thread works has, or wants, more than one place."""
        owner = _owner.get()
        with self._lock:
            return self._held[owner] > 1 or owner in self._waiting

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place on a thread that a room runs already, for its owner. Raises `TooBusy`."""
        owner = _owner.get()
        turn = self._turn(owner)
        concurrent.futures.wait([turn], self._patience_s)
        self._be_seated(owner, turn)
        try:
            yield
        finally:
            self._leave(owner)

    def close(self) -> None:
        """Wait for the threads."""
        self._closing.set()
        self._threads.shutdown()

    async def _enter(self, owner: str) -> None:
        turn = self._turn(owner)
        if turn.done():
            return
        try:
            await asyncio.wait({asyncio.wrap_future(turn)}, timeout=self._patience_s)
        except asyncio.CancelledError:
            if not self._withdraw(owner, turn):
                self._leave(owner)
            raise
        self._be_seated(owner, turn)

    def _measured(self, owner: str, elsewhere_s: list[float], act: Callable[[], T]) -> T:
        began_s = time.thread_time()
        try:
            return act()
        finally:
            taken_s = time.thread_time() - began_s + sum(elsewhere_s)
            self._spend(owner, taken_s)
            # Each of its places rests as long as all of them together would for their work.
            self._have_rest(owner, taken_s * self._held[owner])
            self._leave(owner)

    def _have_rest(self, owner: str, taken_s: float) -> None:
        until_s = time.monotonic() + min(LONGEST_REST_S, self._rest(owner, taken_s))
        while (left_s := until_s - time.monotonic()) > 0 and self._rest(owner, taken_s):
            if self._closing.wait(min(left_s, REST_LOOK_S)):
                return

    def _turn(self, owner: str) -> Future[None]:
        """Return a future that is done as soon as the owner has a place."""
        turn: Future[None] = Future()
        with self._lock:
            self._waiting[owner][turn] = None
            self._seat()
        return turn

    def _be_seated(self, owner: str, turn: Future[None]) -> None:
        if self._withdraw(owner, turn):
            raise TooBusy(
                f"The api does as much {self._work} at once as it can, for you or for all; retry in a moment."
            )

    def _withdraw(self, owner: str, turn: Future[None]) -> bool:
        """Stop waiting. False if the place has been given already."""
        with self._lock:
            if turn.done():
                return False
            del self._waiting[owner][turn]
            self._tidy(owner)
            return True

    def _leave(self, owner: str) -> None:
        with self._lock:
            self._free += 1
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]
            self._seat()

    def _seat(self) -> None:
        """Give free places to those who wait. The lock is held."""
        while (owner := self._next()) is not None:
            turn = next(iter(self._waiting[owner]))
            del self._waiting[owner][turn]
            self._tidy(owner)
            self._free -= 1
            self._held[owner] += 1
            turn.set_result(None)

    def _next(self) -> str | None:
        """Return the owner whose turn it is: of those who wait the one that holds least, unless there is no place for it."""
        owner = min(self._waiting, key=self._held.__getitem__, default=None)
        return owner if owner is not None and self._held[owner] < self._free else None

    def _tidy(self, owner: str) -> None:
        if not self._waiting[owner]:
            del self._waiting[owner]


@dataclass(frozen=True, slots=True)
class Workrooms:
    """The rooms of an api process. `decoding` has places but no threads of its own: pictures are decoded inside other rooms."""

    database: Workroom
    intake: Workroom
    storage: Workroom
    decoding: Workroom
    bodies: Workroom
    prompts: Workroom
    redis: Workroom
    keys: Workroom
    updates: Workroom
    probes: Workroom

    @classmethod
    def opened(cls, *, spend: Spend, spend_on_counts: Spend, rest: Rest) -> "Workrooms":
        """Open all rooms. `spend` and `spend_on_counts` are told what the work took of the processors, `rest` tells its rest."""
        room = partial(Workroom, patience_s=PATIENCE_S, rest=rest)
        return cls(
            database=room("work on the database", 32, spend=spend),
            intake=room("work on clients' pictures", 8, spend=spend),
            storage=room("work on the image storage", 16, spend=spend),
            decoding=room("decoding of pictures", 4),  # 0.6 GB at worst
            bodies=room("reading of large bodies", 2, spend=spend),  # so few leave processor time to all else
            prompts=room("reading of prompts", 2, spend=spend_on_counts),
            redis=room("work on Redis", 8),
            keys=room("checking of keys", 4),
            updates=room("reading of updates", 4),
            probes=room("probing", 4),
        )

    def close(self) -> None:
        """Wait for all threads."""
        for name in self.__slots__:
            getattr(self, name).close()
