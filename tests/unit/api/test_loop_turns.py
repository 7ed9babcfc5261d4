"""Turns of the event loop: between two steps, a request waits for one step of every other owner, and for no more."""

import asyncio
from typing import Any

import pytest

from api.limits.loop_turns import BESIDE_OTHERS, PER_TURN, LoopTurns

CROWD, STEPS = 40, 5


async def walk(owner: str, trail: list[str], steps: int = STEPS) -> str:
    for _ in range(steps):
        trail.append(owner)
        await asyncio.sleep(0)
    return owner


def test_beside_a_crowd_a_request_takes_each_of_its_steps_in_the_next_turn() -> None:
    async def run() -> None:
        turns, trail = LoopTurns(), list[str]()
        crowd = [asyncio.create_task(turns.shared("ada", walk("ada", trail))) for _ in range(CROWD)]
        await asyncio.sleep(0)
        trail.clear()
        assert await turns.shared("bob", walk("bob", trail)) == "bob"
        gaps = "".join("." if one == "ada" else "|" for one in trail).split("|")
        assert max(len(gap) for gap in gaps[:-1]) <= 2 * BESIDE_OTHERS + PER_TURN
        assert await asyncio.gather(*crowd) == ["ada"] * CROWD
        assert trail.count("ada") >= CROWD * STEPS - CROWD

    asyncio.run(run())


def test_a_crowd_alone_takes_a_few_steps_in_a_turn() -> None:
    async def run() -> None:
        turns, trail = LoopTurns(), list[str]()
        crowd = [asyncio.create_task(turns.shared("ada", walk("ada", trail))) for _ in range(CROWD)]
        seen = 0
        while len(trail) < CROWD * STEPS:
            await asyncio.sleep(0)
            assert len(trail) - seen <= 2 * PER_TURN
            seen = len(trail)
        await asyncio.gather(*crowd)

    asyncio.run(run())


def test_one_that_is_given_up_leaves_its_turn_to_the_next() -> None:
    async def run() -> None:
        turns = LoopTurns()
        crowd = [asyncio.create_task(turns.shared("ada", walk("ada", []))) for _ in range(CROWD)]
        await asyncio.sleep(0)
        for one in crowd[PER_TURN:-1]:
            one.cancel()
        assert await crowd[-1] == "ada"
        assert await turns.shared("bob", walk("bob", [])) == "bob"

    asyncio.run(run())


def test_a_request_in_turns_sees_what_any_coroutine_sees() -> None:
    async def run() -> None:
        turns, seen = LoopTurns(), list[str]()

        async def request() -> None:
            try:
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            except TimeoutError:
                seen.append("timeout")
            failing = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(failing.set_exception, KeyError("lost"))
            with pytest.raises(KeyError):
                await failing
            seen.append("error")
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("canceled")

        crowd = [asyncio.create_task(turns.shared("ada", walk("ada", [], 100))) for _ in range(CROWD)]
        asked = asyncio.create_task(turns.shared("ada", request()))
        while seen != ["timeout", "error"]:
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert seen == ["timeout", "error", "canceled"]
        await asyncio.gather(*crowd)

    asyncio.run(run())


def test_what_a_request_raises_comes_out() -> None:
    async def run() -> None:
        async def failing() -> None:
            await asyncio.sleep(0)
            raise LookupError

        with pytest.raises(LookupError):
            await LoopTurns().shared("ada", failing())

    asyncio.run(run())


@pytest.mark.parametrize(("crowds", "rests"), [(2, False), (1, True)])
def test_a_crowd_rests_beside_one_who_comes_alone(crowds: int, rests: bool) -> None:
    async def run() -> None:
        loop, rests_s = asyncio.get_running_loop(), list[float]()
        later = loop.call_later

        def noted(rest_s: float, *what: Any) -> asyncio.TimerHandle:
            rests_s.append(rest_s)
            return later(rest_s, *what)

        loop.call_later = noted  # type: ignore[assignment, method-assign]
        turns = LoopTurns()
        owners = ["ada"] * CROWD + ["bob"] * (CROWD if crowds == 2 else 1)
        await asyncio.gather(*(turns.shared(owner, walk(owner, [])) for owner in owners))
        assert any(rests_s) == rests

    asyncio.run(run())
