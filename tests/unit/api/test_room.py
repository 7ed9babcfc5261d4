"""Memory that all share: whoever comes first, some is left for the next."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.limits.room import Room
from shared.errors import TooBusy

SIZE = 1024


async def taken(room: Room, owner: str, count: int, *, patience_s: float = 0) -> bool:
    try:
        await room.take(owner, count, patience_s=patience_s)
    except TooBusy:
        return False
    return True


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(1, SIZE)), max_size=40))
def test_a_newcomer_finds_room_whatever_others_have_taken(wanted: list[tuple[str, int]]) -> None:
    async def run() -> None:
        room = Room(SIZE)
        held = [(owner, count) for owner, count in wanted if await taken(room, owner, count)]
        left = SIZE - sum(count for _, count in held)
        assert left >= SIZE // 2 ** len("abcdefgh")
        assert await taken(room, "newcomer", left // 2)
        room.give("newcomer", left // 2)
        for owner, count in held:
            room.give(owner, count)
        assert await taken(room, "a", SIZE // 2)

    asyncio.run(run())


def test_who_waits_for_his_own_holds_up_nobody() -> None:
    async def run() -> None:
        room = Room(SIZE)
        assert await taken(room, "a", SIZE // 2)
        waiting = asyncio.create_task(taken(room, "a", SIZE // 4, patience_s=60))
        await asyncio.sleep(0)
        assert await taken(room, "b", SIZE // 4)
        room.give("b", SIZE // 4)
        room.give("a", SIZE // 2)
        assert await waiting

    asyncio.run(run())


def test_who_gives_up_has_taken_nothing() -> None:
    async def run() -> None:
        room = Room(SIZE)
        assert await taken(room, "a", SIZE // 2)
        assert not await taken(room, "a", 1, patience_s=0.01)
        waiting = asyncio.create_task(taken(room, "a", SIZE // 2, patience_s=60))
        await asyncio.sleep(0)
        room.give("a", SIZE // 2)
        waiting.cancel()  # at the moment at which it gets its part
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await taken(room, "a", SIZE // 2)

    asyncio.run(run())


def test_who_gives_up_before_room_becomes_free_is_given_none() -> None:
    async def run() -> None:
        room = Room(SIZE)
        assert await taken(room, "a", SIZE // 2)
        waiting = asyncio.create_task(taken(room, "a", SIZE // 2, patience_s=60))
        await asyncio.sleep(0)
        waiting.cancel()
        room.give("a", SIZE // 2)  # before the task hears of it
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await taken(room, "a", SIZE // 2)

    asyncio.run(run())


def test_what_is_larger_than_any_part_has_the_largest_alone() -> None:
    async def run() -> None:
        room = Room(SIZE)
        async with room.holding("a", 10 * SIZE, patience_s=0):
            assert not await taken(room, "a", 1)
            assert await taken(room, "b", SIZE // 4)

    asyncio.run(run())
