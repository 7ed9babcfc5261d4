"""Answers that are made while they are sent, in memory that all of them share."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.testclient import TestClient
from starlette.types import Message

from api import large_answers
from api.json_bodies import JsonRoute
from api.large_answers import PIECE_BYTES, LargeAnswer
from api.limits.bodies import BodyLimit, HeldBytes
from api.limits.loop_turns import LoopTurns
from api.limits.memory import Memory
from api.limits.workrooms import Workroom
from shared.errors import Gone, TooBusy

SIZE = 1024


async def sent(answer: LargeAnswer, memory: Memory, *, reads: bool = True) -> list[Message]:
    """Send an answer to a client who reads all of it, or nothing."""
    messages: list[Message] = []

    async def receive() -> Message:
        return await asyncio.Future()

    async def send(message: Message) -> None:
        messages.append(message)
        if not reads:
            await asyncio.Future()

    threads = Workroom("work on the image storage", 1)
    desk = SimpleNamespace(turns=LoopTurns(), answers=memory, rooms=SimpleNamespace(storage=threads))
    app: Any = SimpleNamespace(state=SimpleNamespace(desk=desk))
    try:
        await answer({"type": "http", "app": app, "client": ("one", 1)}, receive, send)
    finally:
        threads.close()
    return messages


def answered(pieces: Iterator[bytes], memory: Memory, *, reads: bool = True, single: bool = False) -> list[Message]:
    answer = LargeAnswer(pieces, needs_bytes=SIZE, media_type="x/y", single=single)
    return asyncio.run(sent(answer, memory, reads=reads))


def is_free(memory: Memory) -> bool:
    asyncio.run(memory.take("one", SIZE // 2, patience_s=0))
    return True


def failing(*before: bytes) -> Iterator[bytes]:
    yield from before
    raise Gone


def test_an_answer_is_sent_in_pieces_that_can_be_paced() -> None:
    memory = Memory(SIZE)
    start, *parts, end = answered(iter([b"a" * 2 * PIECE_BYTES, b"", b"b"]), memory)
    assert (start["status"], dict(start["headers"])) == (200, {b"content-type": b"x/y"})
    assert [len(part["body"]) for part in parts] == [PIECE_BYTES, PIECE_BYTES, 1]
    assert not end["more_body"]
    assert is_free(memory)


def test_a_single_piece_has_its_length() -> None:
    start, *_ = answered(iter([b"abc"]), Memory(SIZE), single=True)
    assert dict(start["headers"])[b"content-length"] == b"3"


def test_what_goes_wrong_at_first_is_an_error_and_later_no_end() -> None:
    memory = Memory(SIZE)
    with pytest.raises(Gone):
        answered(failing(), memory)
    with pytest.raises(Gone):
        answered(failing(b"begun"), memory)
    assert is_free(memory)


def test_a_refusal_names_what_was_asked_for() -> None:
    answer = LargeAnswer(failing(), needs_bytes=SIZE, media_type="x/y", naming={"X-Job": "7"})
    start, _ = asyncio.run(sent(answer, Memory(SIZE)))
    assert (start["status"], dict(start["headers"])[b"x-job"]) == (Gone.status, b"7")


def test_who_does_not_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_answers, "PIECE_S", 0.01)
    memory = Memory(SIZE)
    assert len(answered(iter([b"a"]), memory, reads=False)) == 1
    assert is_free(memory)


def test_an_answer_without_memory_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_answers, "PATIENCE_S", 0.01)
    memory = Memory(SIZE)
    assert is_free(memory)  # and is not any more
    with pytest.raises(TooBusy):
        answered(iter([b"a"]), memory)


def test_what_an_answer_needs_of_its_request_is_kept_until_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    router = APIRouter(route_class=JsonRoute)

    @router.post("/")
    async def enlarge(_body: dict[str, str]) -> Response:
        return LargeAnswer(iter([b"large"]), needs_bytes=5, media_type="x/y", kept_bytes=3)

    threads = Workroom("work on the image storage", 1)
    app = FastAPI()
    app.include_router(router)
    app.add_middleware(BodyLimit, max_bytes=SIZE, sharer=lambda _: "one")
    app.state.desk = SimpleNamespace(turns=LoopTurns(), answers=Memory(SIZE), rooms=SimpleNamespace(storage=threads))
    monkeypatch.setattr(HeldBytes, "keep", lambda _, count: kept.append(count))
    assert TestClient(app).post("/", json={"image": "small"}).content == b"large"
    threads.close()
    assert kept[-2:] == [3, 0]
