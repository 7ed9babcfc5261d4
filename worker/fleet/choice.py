"""Choice: which checkpoints a gpu worker has open, to claim from. Pure: workers decide by it, and `make simulate` plays it.

A worker stays with its resident checkpoint while it has work. It turns to another one when a job there has a higher priority,
comes before its own in the fair queue by more than a batch, or has waited for longer than its patience, some prices of a swap.
Of those that it may turn to it takes the highest priority; then the earliest in the fair queue, in steps that double; then the
largest of age + backlog - price. While the farm is calm, with no more waiting than it does in some seconds, the fair queue does
not count: who asks for more than others then keeps nobody waiting for long, and put behind them would itself wait several
times as long as they do.

It may turn to what it is home to; also to what waits for too long elsewhere, if it has nothing to do, as when a home died, or if
that stands far before all of its own in the fair queue: else a worker that is home to nobody else's would go on with the backlog
of one who names many checkpoints. Nobody turns to what others have resident unless it is more than they can serve.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from shared.vocabulary.forecast import STAYS_S, patience_s
from worker.fleet.members import Member
from worker.fleet.waiting import Waiting

# How long before one that is not its home does so.
_STRANGERS_PRICES = 4.0
# Checkpoints that are this near alternate by tick, so many at a time.
_ALTERNATING_S, _ALTERNATING = 0.010, 3
# What a worker does in about so many seconds is a batch.
_BATCH_S = 1.0
# So many steps in the fair queue are far.
_FAR = 2
# The farm is calm while it does all that waits in so many seconds.
_CALM_S = 5.0


def choose(
    me: Member,
    members: Sequence[Member],
    homes: Mapping[str, Collection[str]],
    waiting: Sequence[Waiting],
    *,
    open_now: tuple[str, ...],
    price_s: Callable[[str], float],
    idle: bool,
    stayed_s: float = math.inf,
    oldest_level: bool = False,
) -> tuple[str, ...]:
    """Return the checkpoints to have open, the one to be resident first; the same tuple is to stay.

    `waiting` is of the whole library, `idle` means that nothing runs, `stayed_s` is the time since the worker turned last. With
    `oldest_level` priorities and turns do not count, only age: asked for now and then, so that nothing waits for ever.
    """
    view = _view(me, members, homes, waiting, price_s, oldest_level=oldest_level)
    at_hand = [one for one in waiting if one.checkpoint in open_now]
    held = max(at_hand, key=view.rank, default=None)
    rivals = [one for one in waiting if one.checkpoint not in open_now and view.may_take(one)]
    ours = [one for one in rivals if me.id in homes.get(one.checkpoint, ())]
    stay = open_now or (me.resident,)
    if view.is_light([*at_hand, *ours]):
        near = [one for one in ours if price_s(one.checkpoint) <= _ALTERNATING_S]
        if near:
            return view.alternating(sorted([*at_hand, *near], key=view.rank, reverse=True), open_now)
    elif held and len(open_now) > 1:
        stay = (held.checkpoint,)
    own = [*ours, *([held] if held else [])]
    strange = [one for one in rivals if view.is_too_late(one) and (view.is_before(one, own) if own else idle)]
    best = max(strange or ours, key=view.rank, default=None)
    if best is None or (held and not view.turns(held, best, stayed_s)):
        return stay
    # Until what runs has ended nothing can be swapped: who comes meanwhile may join it.
    return stay if not (held or idle or view.is_pressing(best)) else (best.checkpoint,)


def hands(one: Waiting, *, speed: float, price_s: float) -> int:
    """Return how many workers may have a checkpoint resident for what waits: one more than serve it, once it waits too long."""
    patience = patience_s(price_s)
    is_late = one.oldest_s > patience + price_s
    return max(1, math.ceil(one.cost / (speed * patience)) + is_late)


@dataclass(frozen=True, slots=True)
class _View:
    """What waits, as one worker sees it. `first` is the least lag at each priority, `busy` who has or intends what."""

    me: Member
    homes: Mapping[str, Collection[str]]
    price_s: Callable[[str], float]
    speed: float
    busy: Counter[str]
    first: Mapping[int, float]
    oldest: int | None
    is_calm: bool

    def rank(self, one: Waiting) -> tuple[float, float, float, str]:
        """Order checkpoints by what should be rendered first."""
        value = one.oldest_s + one.cost / self.speed - self.price_s(one.checkpoint)
        return self.level(one), -self.distance(one), value, one.checkpoint

    def level(self, one: Waiting) -> int:
        """Return what goes first: the highest priority, or that of the job that waits longest."""
        return one.priority if self.oldest is None else int(one.priority == self.oldest)

    def distance(self, one: Waiting) -> int:
        """Return how far behind the first of its priority it stands in the fair queue: 0 within a batch, 1 within three."""
        return 0 if self.is_calm else int(math.log2(1.0 + self.batches(one)))

    def may_take(self, one: Waiting) -> bool:
        """Say whether it can load it, and it is more than they serve who have it."""
        return one.checkpoint in self.me.library and self.busy[one.checkpoint] < self._hands(one)

    def is_too_late(self, one: Waiting) -> bool:
        """Say whether it waits for so long that an idle worker takes it without being its home."""
        return one.oldest_s > max(STAYS_S, _STRANGERS_PRICES * self.price_s(one.checkpoint))

    def is_before(self, one: Waiting, own: Sequence[Waiting]) -> bool:
        """Say whether it stands far before all that is this worker's to render in the fair queue."""
        return all(one.priority == other.priority and self.distance(one) + _FAR < self.distance(other) for other in own)

    def batches(self, one: Waiting) -> float:
        """Return how far behind the first of its priority it stands in the fair queue, in batches."""
        return (one.lag - self.first[one.priority]) / (self.speed * _BATCH_S)

    def turns(self, held: Waiting, best: Waiting, stayed_s: float) -> bool:
        """Say whether it leaves a checkpoint that has work for a better one."""
        price = self.price_s(best.checkpoint)
        if self.level(best) != self.level(held):
            return self.level(best) > self.level(held) and best.oldest_s >= price
        patience = patience_s(price)
        # As long as it lets others wait, so that swaps take a bounded part of its time and it fills its batch.
        if stayed_s < patience:
            return False
        sooner = self.distance(held) - self.distance(best)
        # Whose turn it is stays, however long those wait who have had more.
        return sooner > 0 or (sooner == 0 and best.oldest_s > patience)

    def is_pressing(self, one: Waiting) -> bool:
        """Say whether it is to be next as soon as may be: it has used up half its patience, or needs none."""
        price = self.price_s(one.checkpoint)
        return price <= _ALTERNATING_S or one.oldest_s > patience_s(price) / 2

    def is_light(self, ones: Sequence[Waiting]) -> bool:
        """Say whether all of it is less than half a batch."""
        return sum(one.cost for one in ones) <= self.speed * _BATCH_S / 2

    def alternating(self, ranked: Sequence[Waiting], open_now: tuple[str, ...]) -> tuple[str, ...]:
        """Return up to three to alternate: what has work, best first, then what was open."""
        names = dict.fromkeys([*(one.checkpoint for one in ranked), *open_now])
        return tuple(names)[:_ALTERNATING]

    def _hands(self, one: Waiting) -> int:
        # What was not counted to the end is more than anybody can serve at once.
        return hands(one, speed=self.speed, price_s=self.price_s(one.checkpoint)) if one.is_all else 1 << 30


def _view(
    me: Member,
    members: Sequence[Member],
    homes: Mapping[str, Collection[str]],
    waiting: Sequence[Waiting],
    price_s: Callable[[str], float],
    *,
    oldest_level: bool,
) -> _View:
    busy = Counter(member.intends or member.resident for member in members if member.id != me.id)
    first: dict[int, float] = {}
    for one in waiting:
        first[one.priority] = min(first.get(one.priority, math.inf), one.lag)
    longest = max(waiting, key=lambda one: one.oldest_s, default=None) if oldest_level else None
    speed = _speed(me, members, waiting)
    return _View(
        me,
        homes,
        price_s,
        speed,
        busy,
        first,
        longest.priority if longest else None,
        _is_calm(members, waiting, speed),
    )


def _is_calm(members: Sequence[Member], waiting: Sequence[Waiting], speed: float) -> bool:
    """Say whether the farm does all that waits so soon that nobody's backlog keeps others waiting for long."""
    does = _CALM_S * math.fsum(member.speed or speed for member in members)
    # What was not counted to the end is little as long as it is young.
    return math.fsum(one.cost for one in waiting) <= does and all(
        one.is_all or one.oldest_s <= _CALM_S for one in waiting
    )


def _speed(me: Member, members: Sequence[Member], waiting: Sequence[Waiting]) -> float:
    """Return cost a second: its own, or the others' mean, or one job a second while nothing was measured."""
    known = [member.speed for member in members if member.speed]
    if me.speed or known:
        return me.speed or sum(known) / len(known)
    return sum(one.cost for one in waiting) / max(1, sum(one.jobs for one in waiting)) or 1.0
