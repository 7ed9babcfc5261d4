"""Homes: which workers keep a checkpoint warm, by rendezvous hashing with bounded loads. Pure: nobody stores or negotiates them.

Each worker draws a lot for each checkpoint from their names, and the highest lots are its homes (Thaler, Ravishankar 1998), so a
worker that comes or goes moves little else. A worker is home to no more checkpoints, and to no more of the demand, than a little
over its part (Mirrokni, Thorup, Zadimoghaddam 2018): what does not fit goes to the next lot. Memory that is left keeps further
copies of what is wanted most, so that the work has a choice of workers.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

from worker.fleet.members import Member

# A home's speed that is counted on; the rest is for swaps and small batches.
_USED = 0.6
# How far above its even part a worker may be loaded.
_SLACK = 1.25
# What asks for less of the work than this part of a worker's hardly weighs.
_LITTLE = 1 / 16
# Of a worker's memory, for checkpoints that it is not home to.
_SPARE = 0.125
_MASK = (1 << 64) - 1


def homes(demand: Mapping[str, float], members: Sequence[Member]) -> Mapping[str, tuple[str, ...]]:
    """Return for every checkpoint in any library its homes, best first. `demand` is cost a second; what is not in it has none."""
    able = _able(members)
    loads = _loads({name: demand.get(name, 0.0) for name in able}, members)
    wanted = {name: min(len(able[name]), max(1, math.ceil(loads[name] / _USED))) for name in able}
    order = sorted(able, key=lambda name: (-loads[name], _seed(name)))
    rooms = _rooms(members, sum(wanted.values()), sum(loads.values()))
    placed: dict[str, list[str]] = {name: [] for name in able}
    for name in _in_turns(order, wanted):
        _place(name, loads[name] / wanted[name], able[name], rooms, placed[name])
    for name in order:
        _add(name, able[name], rooms, placed[name])
    return {name: tuple(ids) for name, ids in placed.items()}


class _Room:
    """What a worker may still be home to: `places` checkpoints, `load` of demand, and `spare` places beyond need."""

    __slots__ = ("load", "places", "spare")

    def __init__(self, places: int, load: float, spare: int) -> None:
        self.places, self.load, self.spare = places, load, spare

    def take(self, load: float) -> None:
        self.places -= 1
        self.spare -= 1
        self.load -= load


def _able(members: Sequence[Member]) -> Mapping[str, Sequence[Member]]:
    """Return who can load each checkpoint."""
    able: dict[str, list[Member]] = {}
    for member in members:
        for name in member.library:
            able.setdefault(name, []).append(member)
    return able


def _loads(demand: Mapping[str, float], members: Sequence[Member]) -> Mapping[str, float]:
    """Return how many workers each checkpoint keeps busy: as a power of two, or 0 for the many that hardly weigh.

    So homes do not change with every measurement.
    """
    speed, total = _mean_speed(members), sum(demand.values())
    little = _LITTLE * total / max(1, len(members))
    if speed == math.inf:
        return dict.fromkeys(demand, 0.0)
    return {name: _power_of_two(one / speed) if one > little else 0.0 for name, one in demand.items()}


def _power_of_two(number: float) -> float:
    return 2.0 ** round(math.log2(min(max(number, 1e-9), 1e9)))


def _mean_speed(members: Sequence[Member]) -> float:
    speeds = [member.speed for member in members if member.speed]
    return sum(speeds) / len(speeds) if speeds else math.inf


def _rooms(members: Sequence[Member], copies: int, load: float) -> Mapping[str, _Room]:
    """Divide the copies by memory and the load by speed. Memory that is too small for all copies is stretched evenly."""
    stretch = max(1.0, _SLACK * copies / (sum(member.keeps for member in members) or 1))
    mean = _mean_speed(members)
    # Of two workers of one kind, one with full batches is measured several times as fast: only what is more counts.
    parts = {one.id: _power_of_two(math.sqrt(one.speed / mean)) ** 2 if one.speed else 1.0 for one in members}
    total = sum(parts.values())
    return {
        member.id: _Room(
            math.ceil(stretch * member.keeps),
            _SLACK * load * parts[member.id] / total,
            member.keeps - math.ceil(_SPARE * member.keeps),
        )
        for member in members
    }


def _in_turns(order: Sequence[str], wanted: Mapping[str, int]) -> Iterator[str]:
    """Yield every checkpoint once, then those that want a second home, and so on."""
    for turn in range(max(wanted.values(), default=0)):
        yield from (name for name in order if wanted[name] > turn)


def _place(name: str, load: float, able: Sequence[Member], rooms: Mapping[str, _Room], placed: list[str]) -> None:
    """Give a checkpoint one more home: the highest lot with room for its load, else with a place, else with the most places."""
    free = [member for member in able if member.id not in placed]
    light = [member for member in free if rooms[member.id].places > 0 and rooms[member.id].load >= load]
    roomy = light or [member for member in free if rooms[member.id].places > 0]
    if roomy:
        chosen = max(roomy, key=lambda member: _lot(name, member))
    else:
        chosen = max(free, key=lambda member: (rooms[member.id].places, _lot(name, member)))
    rooms[chosen.id].take(load)
    placed.append(chosen.id)


def _add(name: str, able: Sequence[Member], rooms: Mapping[str, _Room], placed: list[str]) -> None:
    """Give a checkpoint one home more than it needs, where a worker has memory to spare."""
    free = [member for member in able if member.id not in placed and rooms[member.id].spare > 0]
    if free:
        chosen = max(free, key=lambda member: _lot(name, member))
        rooms[chosen.id].take(0.0)
        placed.append(chosen.id)


def _lot(name: str, member: Member) -> float:
    """Draw a worker's lot for a checkpoint; twice the memory wins twice as often (weighted rendezvous hashing)."""
    mixed = (_seed(name) ^ _seed(member.id)) & _MASK
    # The finalizer of splitmix64 (Steele, Lea, Flood 2014).
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return -member.keeps / math.log(((mixed ^ (mixed >> 31)) + 0.5) / (_MASK + 1.0))


@lru_cache(maxsize=65536)
def _seed(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
