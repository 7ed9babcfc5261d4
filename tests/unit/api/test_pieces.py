"""Pieces of large bodies and answers: a crowd of one owner takes one in a turn of the loop."""

import asyncio

from api.limits.pieces import Pieces

CROWD = 40


def test_a_crowd_takes_its_turns_one_after_another_and_another_owner_its_own_at_once() -> None:
    async def run() -> None:
        pieces, came = Pieces(), list[str]()

        async def take(owner: str) -> None:
            await pieces.turn_of(owner)
            came.append(owner)

        crowd = [asyncio.create_task(take("ada")) for _ in range(CROWD)]
        newcomer = asyncio.create_task(take("bob"))
        await newcomer
        assert came.count("ada") <= 2
        turns = 0
        while len(came) <= CROWD:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= CROWD - 2
        await asyncio.gather(*crowd)

    asyncio.run(run())


def test_one_that_is_given_up_leaves_its_turn_to_the_next() -> None:
    async def run() -> None:
        pieces = Pieces()
        crowd = [asyncio.create_task(pieces.turn_of("ada")) for _ in range(3)]
        await asyncio.sleep(0)
        for one in crowd[:2]:
            one.cancel()
        await crowd[2]

    asyncio.run(run())
