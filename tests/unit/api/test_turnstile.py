"""A crowd of requests of one owner: those of others pass between, and find a place."""

import asyncio

from starlette.types import Message, Receive, Scope, Send

from api.callers import Caller, sharer
from api.limits.loop_turns import BESIDE_OTHERS, PER_TURN, LoopTurns
from api.limits.turnstile import Turnstile

PLACES = 64


class Farm:
    """Stands for all that is inside: notes who comes, and answers when it is told to."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.answer = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        del receive
        self.came.append(scope["state"]["caller"].owner)
        await self.answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def status(turnstile: Turnstile, owner: str) -> int:
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Message:
        return {"type": "http.request"}

    state = {"caller": Caller(owner)}
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "state": state}
    await turnstile(scope, receive, send)
    return statuses[0]


def test_a_newcomer_goes_before_a_crowd() -> None:
    async def run() -> None:
        farm, turns = Farm(), LoopTurns()
        turnstile = Turnstile(farm, places=8 * PLACES, turns_of=lambda _: turns, sharer=sharer)
        crowd = [asyncio.create_task(status(turnstile, "ada")) for _ in range(PLACES)]
        newcomer = asyncio.create_task(status(turnstile, "bob"))
        while len(farm.came) <= PLACES:
            await asyncio.sleep(0)
        before = farm.came.index("bob")
        assert before <= 2 * PER_TURN
        # Beside others a crowd takes smaller steps.
        third = asyncio.create_task(status(turnstile, "cy"))
        more = [asyncio.create_task(status(turnstile, "ada")) for _ in range(PLACES)]
        while "cy" not in farm.came:
            await asyncio.sleep(0)
        assert len(farm.came) - PLACES - 2 <= 2 * BESIDE_OTHERS
        crowd += [third, *more]
        farm.answer.set()
        assert await asyncio.gather(*crowd, newcomer) == [200] * (2 * PLACES + 2)

    asyncio.run(run())


def test_a_crowd_that_waits_leaves_places_and_gives_them_back() -> None:
    async def run() -> None:
        farm, turns = Farm(), LoopTurns()
        turnstile = Turnstile(farm, places=PLACES, turns_of=lambda _: turns, sharer=sharer)
        crowd = [asyncio.create_task(status(turnstile, "ada")) for _ in range(2 * PLACES)]
        while len(farm.came) < PLACES // 2:
            await asyncio.sleep(0)
        newcomer = asyncio.create_task(status(turnstile, "bob"))
        while "bob" not in farm.came:
            await asyncio.sleep(0)
        assert await status(turnstile, "ada") == 503
        crowd[0].cancel()
        again = asyncio.create_task(status(turnstile, "bob"))
        farm.answer.set()
        assert [await newcomer, await again] == [200, 200]
        answers = await asyncio.gather(*crowd[1:])
        assert answers.count(200) == PLACES // 2 - 1
        assert answers.count(503) == len(answers) - (PLACES // 2 - 1)
        assert await status(turnstile, "ada") == 200

    asyncio.run(run())


def test_a_request_that_is_given_up_in_the_crowd_leaves_its_turn_to_the_next() -> None:
    async def run() -> None:
        farm, turns = Farm(), LoopTurns()
        farm.answer.set()
        turnstile = Turnstile(farm, places=8 * PLACES, turns_of=lambda _: turns, sharer=sharer)
        crowd = [asyncio.create_task(status(turnstile, "ada")) for _ in range(PLACES)]
        await asyncio.sleep(0)
        for request in crowd[PER_TURN:-1]:
            request.cancel()
        assert await crowd[-1] == 200

    asyncio.run(run())
