"""Group commit: who goes together, who waits for whom, and what one item's failure does to the others."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from threading import Event

import pytest

from api import group_commit
from api.group_commit import GroupCommit
from shared.errors import DatabaseUnavailable, QueueFull
from tests.support.waiting import LIMIT_S

Outcome = int | Exception
Results = list[int | BaseException]


class Store:
    """Remembers the groups that it gets. The first ones wait until it is opened."""

    def __init__(self, judge: Callable[[Sequence[int]], Sequence[Outcome]] = list) -> None:
        self.groups: list[list[int]] = []
        self.opened = Event()
        self._judge = judge

    def __call__(self, items: Sequence[int]) -> Sequence[Outcome]:
        self.groups.append(list(items))
        assert self.opened.wait(LIMIT_S)
        return self._judge(items)


def apart(items: int) -> list[tuple[str, int]]:
    """Items of an owner each."""
    return [(f"owner {item}", item) for item in range(items)]


def stored(store: Store, *adds: tuple[str, int], first: int = 0) -> Results:
    """Add items while groups with the `first` ones, one for each thread, are being stored."""

    async def run(submits: GroupCommit[int, int]) -> Results:
        under_way = []
        for owner, item in adds[:first]:
            under_way.append(asyncio.create_task(submits.add(owner, item)))
            while len(store.groups) < len(under_way):
                await asyncio.sleep(0)
        later = [asyncio.create_task(submits.add(owner, item)) for owner, item in adds[first:]]
        await asyncio.sleep(0)
        store.opened.set()
        return list(await asyncio.gather(*under_way, *later, return_exceptions=True))

    return _run(store, run)


def _run(store: Store, act: Callable[[GroupCommit[int, int]], Coroutine[None, None, Results]]) -> Results:
    async def running() -> Results:
        with GroupCommit(store) as submits:
            return await act(submits)

    return asyncio.run(running())


def test_who_comes_alone_waits_for_nobody() -> None:
    store = Store()
    store.opened.set()
    assert stored(store, ("a", 1)) == [1]
    assert store.groups == [[1]]


def test_what_comes_meanwhile_goes_together() -> None:
    store = Store()
    assert stored(store, *apart(9), first=group_commit.THREADS) == list(range(9))
    assert store.groups[group_commit.THREADS] == list(range(group_commit.THREADS, 9))


def test_a_refused_item_harms_no_other() -> None:
    store = Store(lambda items: [QueueFull() if item == 5 else item for item in items])
    outcomes = stored(store, *apart(9), first=group_commit.THREADS)
    assert [type(one) for one in outcomes] == [QueueFull if item == 5 else int for item in range(9)]


def test_an_item_that_cannot_be_stored_harms_no_other() -> None:
    def judge(items: Sequence[int]) -> Sequence[Outcome]:
        if 5 in items:
            raise ValueError("as a constraint would")
        return list(items)

    outcomes = stored(Store(judge), *apart(9), first=group_commit.THREADS)
    assert [type(one) for one in outcomes] == [ValueError if item == 5 else int for item in range(9)]


def test_a_database_that_is_away_is_asked_once() -> None:
    def judge(_: Sequence[int]) -> Sequence[Outcome]:
        raise DatabaseUnavailable

    store = Store(judge)
    outcomes = stored(store, *apart(9), first=group_commit.THREADS)
    assert {type(one) for one in outcomes} == {DatabaseUnavailable}
    assert len(store.groups) <= group_commit.THREADS + 2


def test_a_crowd_keeps_nobody_waiting() -> None:
    store = Store()
    crowd = [("crowd", item) for item in range(3 * group_commit.GROUP)]
    under_way = apart(group_commit.THREADS)
    outcomes = stored(store, *under_way, *crowd, ("guest", 1000), ("other", 1001), first=len(under_way))
    assert outcomes == [*(item for _, item in (*under_way, *crowd)), 1000, 1001]
    assert [1000, 1001] in store.groups[len(under_way) :][:2]
    assert max(map(len, store.groups)) <= group_commit.GROUP


def test_an_owner_has_one_group_under_way() -> None:
    """While its batch holds its turns in the queue, the other threads are for others."""
    store = Store()

    async def run(submits: GroupCommit[int, int]) -> Results:
        crowd = [asyncio.create_task(submits.add("crowd", item)) for item in range(9)]
        while not store.groups:
            await asyncio.sleep(0)
        guest = asyncio.create_task(submits.add("guest", 1000))
        while len(store.groups) < 2:
            await asyncio.sleep(0)
        store.opened.set()
        return list(await asyncio.gather(*crowd, guest))

    assert _run(store, run) == [*range(9), 1000]
    assert store.groups[1] == [1000]


def test_each_owner_of_a_group_goes_on_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 5.0)
    groups: list[list[int]] = []
    gates = {"first": Event(), "shared": Event()}

    def store(items: Sequence[int]) -> Sequence[Outcome]:
        groups.append(list(items))
        assert gates["first" if items[0] < 100 else "shared"].wait(LIMIT_S)
        return items

    async def run() -> Results:
        with GroupCommit(store) as submits:

            def add(*adds: tuple[str, int]) -> list[asyncio.Task[int]]:
                return [asyncio.create_task(submits.add(owner, item)) for owner, item in adds]

            tasks = add(*apart(group_commit.THREADS))
            while sum(map(len, groups)) < group_commit.THREADS:
                await asyncio.sleep(0)
            tasks += add(("ada", 100), ("bob", 200))
            await asyncio.sleep(0)
            gates["first"].set()
            while [100, 200] not in groups:
                await asyncio.sleep(0)
            tasks += add(("ada", 101), ("ada", 102), ("bob", 201), ("bob", 202))
            await asyncio.sleep(0)
            while not submits._arrivals.empty():  # until the other threads have found nothing to do
                await asyncio.sleep(0)
            gates["shared"].set()
            return list(await asyncio.gather(*tasks, return_exceptions=True))

    assert asyncio.run(run()) == [*range(group_commit.THREADS), 100, 200, 101, 102, 201, 202]


def test_who_comes_after_many_that_gave_up_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 5.0)
    store = Store()

    async def run(submits: GroupCommit[int, int]) -> Results:
        first = asyncio.create_task(submits.add("ada", 0))
        while not store.groups:
            await asyncio.sleep(0)
        crowd = [asyncio.create_task(submits.add("ada", item)) for item in range(1, group_commit.GROUP + 2)]
        await asyncio.sleep(0)
        while not submits._arrivals.empty():  # until the other threads have found nothing to do
            await asyncio.sleep(0)
        for one in crowd[:-1]:
            one.cancel()
        await asyncio.sleep(0)
        store.opened.set()
        return list(await asyncio.gather(first, crowd[-1], return_exceptions=True))

    assert _run(store, run) == [0, group_commit.GROUP + 1]


def test_who_waits_too_long_is_told_and_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 0.05)
    store = Store()

    async def run(submits: GroupCommit[int, int]) -> Results:
        under_way = []
        for owner, item in apart(group_commit.THREADS):
            under_way.append(asyncio.create_task(submits.add(owner, item)))
            while len(store.groups) < len(under_way):
                await asyncio.sleep(0)
        outcomes = await asyncio.gather(*under_way, submits.add("a", 1000), return_exceptions=True)
        store.opened.set()
        return list(outcomes)

    *under_way, last = _run(store, run)
    assert {type(one) for one in (*under_way, last)} == {DatabaseUnavailable}
    assert "nothing was changed" in str(last)
    assert all("may have been stored or not" in str(one) for one in under_way)
    assert [1000] not in store.groups
