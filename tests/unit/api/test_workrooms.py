"""Workrooms: bounded places, shared out between owners, and a short patience."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from threading import Event

import pytest

from api.limits import workrooms
from api.limits.workrooms import Workroom
from shared.errors import TooBusy

HANGING = 60.0


class Hang:
    """Work that ends when told to; counts at whose it is, and at most how much of it there was."""

    def __init__(self) -> None:
        self.over = Event()
        self.begun: list[str] = []

    def __call__(self, owner: str) -> str:
        self.begun.append(owner)
        assert self.over.wait(HANGING)
        return owner


def crowd(room: Workroom, hang: Hang, owner: str, size: int) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(room.run(owner, hang, owner)) for _ in range(size)]


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANGING):
        while not what():
            await asyncio.sleep(0.001)


def played(act: Callable[[Hang], Awaitable[None]]) -> None:
    async def whole() -> None:
        hang = Hang()
        try:
            await act(hang)
        finally:
            hang.over.set()

    asyncio.run(whole())


def test_an_owner_holds_no_more_than_it_leaves_free() -> None:
    room = Workroom("work", 8, patience_s=0.05)

    async def act(hang: Hang) -> None:
        greedy = crowd(room, hang, "a", 60)
        await until(lambda: len(hang.begun) == 4)
        others = [*crowd(room, hang, "b", 60), *crowd(room, hang, "c", 60)]
        refused = await asyncio.gather(*greedy[4:], *others[3:60], *others[61:], return_exceptions=True)
        assert Counter(hang.begun) == {"a": 4, "b": 2, "c": 1}
        assert all(isinstance(one, TooBusy) for one in refused)
        hang.over.set()
        await asyncio.gather(*greedy[:4], *others[:2], others[60])

    played(act)
    room.close()


def test_a_place_goes_to_whoever_holds_least() -> None:
    room = Workroom("work", 2, patience_s=HANGING)

    async def act(hang: Hang) -> None:
        first = crowd(room, hang, "a", 3)
        await until(lambda: hang.begun == ["a"])
        later = crowd(room, hang, "b", 1)
        await until(lambda: hang.begun == ["a", "b"])
        hang.over.set()
        assert await asyncio.gather(*first, *later) == ["a", "a", "a", "b"]

    played(act)
    room.close()


def test_who_leaves_gives_the_place_back_and_the_thread_keeps_it_to_its_end() -> None:
    room = Workroom("work", 2, patience_s=0.05)

    async def act(hang: Hang) -> None:
        running, waiting = crowd(room, hang, "a", 2)
        await until(lambda: hang.begun == ["a"])
        waiting.cancel()
        running.cancel()
        await asyncio.wait({running, waiting})
        with pytest.raises(TooBusy):  # the thread works on, though nobody waits for it
            await room.run("a", hang, "a")
        hang.over.set()
        await until(lambda: room.held == {})
        assert await room.run("a", hang, "a") == "a"

    played(act)
    room.close()


def test_an_error_gives_the_place_back() -> None:
    room = Workroom("work", 2, patience_s=0.05)

    async def act(_hang: Hang) -> None:
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await room.run("a", lambda: 1 / 0)

    played(act)
    room.close()


def test_a_place_inside_another_room_is_its_owners() -> None:
    outer, inner = Workroom("work", 16), Workroom("decoding", 2, patience_s=0.05)

    async def act(hang: Hang) -> None:
        def nested(owner: str) -> str:
            with inner.place():
                return hang(owner)

        mine = asyncio.create_task(outer.run("a", nested, "a"))
        await until(lambda: hang.begun == ["a"])
        with pytest.raises(TooBusy, match="decoding"):
            await outer.run("a", nested, "a")
        other = asyncio.create_task(outer.run("b", nested, "b"))
        await until(lambda: hang.begun == ["a", "b"])
        hang.over.set()
        await asyncio.gather(mine, other)

    played(act)
    outer.close()
    inner.close()


def test_work_is_measured_by_what_it_takes_of_the_processors() -> None:
    spent: list[tuple[str, float]] = []
    room = Workroom("work", 2, spend=lambda owner, seconds: spent.append((owner, seconds)))

    async def act(_hang: Hang) -> None:
        await room.run("idle", Event().wait, 0.1)
        await room.run("busy", lambda: sum(range(3_000_000)))

    played(act)
    room.close()
    (idle, waited_s), (busy, computed_s) = spent
    assert (idle, busy) == ("idle", "busy")
    assert computed_s > waited_s


def test_a_place_rests_after_its_work_and_no_longer_than_it_has_to() -> None:
    asked: list[tuple[str, float]] = []
    rests = iter([60.0, 60.0, 0.0])

    def rest(owner: str, taken_s: float) -> float:
        asked.append((owner, taken_s))
        return next(rests)

    room = Workroom("work", 2, rest=rest)

    async def act(_hang: Hang) -> None:
        await room.run("ada", lambda: sum(range(100_000)))

    played(act)
    room.close()
    assert [owner for owner, _ in asked] == ["ada"] * 3
    assert all(taken_s > 0 for _, taken_s in asked)


def test_a_rest_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workrooms, "LONGEST_REST_S", 0.05)
    room = Workroom("work", 2, rest=lambda _owner, _taken_s: 3600.0)

    async def act(_hang: Hang) -> None:
        assert await room.run("ada", lambda: 1) == 1

    played(act)
    room.close()


def test_closing_ends_the_rest() -> None:
    room = Workroom("work", 2, rest=lambda _owner, _taken_s: 3600.0)

    async def act(_hang: Hang) -> None:
        resting = asyncio.create_task(room.run("ada", int))
        await until(lambda: room.held == {"ada": 1})
        await asyncio.to_thread(room.close)
        await resting

    played(act)
