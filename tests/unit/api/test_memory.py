"""Memory that all share: whoever comes first, some is left for the next."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.limits.memory import Memory
from shared.errors import TooBusy

SIZE = 1024


async def taken(memory: Memory, owner: str, count: int, *, patience_s: float = 0) -> bool:
    try:
        await memory.take(owner, count, patience_s=patience_s)
    except TooBusy:
        return False
    return True


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(1, SIZE)), max_size=40))
def test_a_newcomer_finds_memory_whatever_others_have_taken(wanted: list[tuple[str, int]]) -> None:
    async def run() -> None:
        memory = Memory(SIZE)
        held = [(owner, count) for owner, count in wanted if await taken(memory, owner, count)]
        left = SIZE - sum(count for _, count in held)
        assert left >= SIZE // 2 ** len("abcdefgh")
        assert await taken(memory, "newcomer", left // 2)
        memory.give("newcomer", left // 2)
        for owner, count in held:
            memory.give(owner, count)
        assert await taken(memory, "a", SIZE // 2)

    asyncio.run(run())


def test_who_waits_for_his_own_holds_up_nobody() -> None:
    async def run() -> None:
        memory = Memory(SIZE)
        assert await taken(memory, "a", SIZE // 2)
        waiting = asyncio.create_task(taken(memory, "a", SIZE // 4, patience_s=60))
        await asyncio.sleep(0)
        assert await taken(memory, "b", SIZE // 4)
        memory.give("b", SIZE // 4)
        memory.give("a", SIZE // 2)
        assert await waiting

    asyncio.run(run())


def test_who_gives_up_has_taken_nothing() -> None:
    async def run() -> None:
        memory = Memory(SIZE)
        assert await taken(memory, "a", SIZE // 2)
        assert not await taken(memory, "a", 1, patience_s=0.01)
        waiting = asyncio.create_task(taken(memory, "a", SIZE // 2, patience_s=60))
        await asyncio.sleep(0)
        memory.give("a", SIZE // 2)
        waiting.cancel()  # at the moment at which it gets its part
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await taken(memory, "a", SIZE // 2)

    asyncio.run(run())


def test_who_gives_up_before_memory_becomes_free_is_given_none() -> None:
    async def run() -> None:
        memory = Memory(SIZE)
        assert await taken(memory, "a", SIZE // 2)
        waiting = asyncio.create_task(taken(memory, "a", SIZE // 2, patience_s=60))
        await asyncio.sleep(0)
        waiting.cancel()
        memory.give("a", SIZE // 2)  # before the task hears of it
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await taken(memory, "a", SIZE // 2)

    asyncio.run(run())


def test_what_is_larger_than_any_part_has_the_largest_alone() -> None:
    async def run() -> None:
        memory = Memory(SIZE)
        async with memory.holding("a", 10 * SIZE, patience_s=0):
            assert not await taken(memory, "a", 1)
            assert await taken(memory, "b", SIZE // 4)

    asyncio.run(run())
