"""Routes txt2img and img2img: submit the jobs of a call, hold the request open until they end, answer with the images.

A waiting request holds no thread. The call is named by `force_task_id` or a generated name; headers of the answer name its jobs.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import structlog
from fastapi import Request, Response
from sqlalchemy.orm import Session as Transaction

from api import problems
from api.a1111 import answers, calls, sessions, styles, translate
from api.a1111.calls import A1111Call
from api.a1111.errors import TooLate
from api.a1111.requests import Img2Img, Txt2Img
from api.a1111.sessions import SessionId
from api.a1111.translate import FarmFacts, Translation
from api.admission import admit, inputs
from api.admission.sent import Sent, SentDep
from api.admission.submissions import WebhookChoice
from api.annex import json_text
from api.callers import Caller, Submitter
from api.desk import Desk, DeskDep
from api.json_bodies import Held
from api.routing import Router, in_room
from api.waiting.disconnect import while_connected
from shared.errors import FarmError, InvalidRequest, OutOfMemory, RenderFailed, UnknownCheckpoint
from shared.infra.tables import JobRow
from shared.jobs.idempotency import Digests
from shared.vocabulary.states import JobState

router = Router(strict_content_type=False)

MAX_NAME_CHARS = 200
JOB_IDS, CALL, IGNORED = "X-Farm-Job-Id", "X-Farm-Task-Id", "X-Farm-Ignored"

R = TypeVar("R", bound=Txt2Img | Img2Img)
log = structlog.get_logger(__name__)


@router.post("/sdapi/v1/txt2img", summary="txt2img", response_class=Response)
def txt2img(body: Txt2Img, sent: SentDep, desk: DeskDep, caller: Submitter, session_id: SessionId) -> Response:
    """Render images from a prompt, with or without hires fix, and answer with them. The request stays open until the end."""
    return _held(desk, caller, begin(desk, caller, session_id, body, sent, translate.txt2img), body)


@router.post("/sdapi/v1/img2img", summary="img2img", response_class=Response)
@in_room("intake")
def img2img(body: Img2Img, sent: SentDep, desk: DeskDep, caller: Submitter, session_id: SessionId) -> Response:
    """Render images from an init image, with or without a mask, and answer with them. The request stays open until the end."""
    return _held(desk, caller, begin(desk, caller, session_id, body, sent, translate.img2img), body)


def begin(
    desk: Desk,
    caller: Caller,
    session_id: str,
    body: R,
    sent: Sent,
    translated: Callable[[R, FarmFacts], Translation],
    *,
    changes: dict[str, Any] | None = None,
    webhook: WebhookChoice | None = None,
) -> A1111Call:
    """Store the jobs of a request and the call that they are, all or nothing, and ring for them.

    Repeating the same request under the same name returns the call that it already made. `changes` override the session's
    options. Raises as `admit`.
    """
    began_ns = time.time_ns()
    name, digests = _name(body.force_task_id), _digests(sent, body, changes)
    with desk.db.transaction() as transaction:
        known = calls.same(transaction, session_id, name, digests)
        if known is not None:
            return known
        farm = _farm(transaction, desk, session_id, changes or {})
    plan = translated(body, farm)
    about = {**plan.about, "ignored": list(plan.ignored)}
    submissions = [one.model_copy(update={"webhook": webhook}) for one in plan.submissions]
    received = inputs.store_all_inputs(desk, caller, submissions)
    with desk.db.transaction() as transaction:
        # The same request may come twice at once; the second waits here and finds what the first made.
        calls.hold(transaction, session_id, name)
        known = calls.same(transaction, session_id, name, digests)
        if known is not None:
            return known
        made = admit.store_all(transaction, desk, caller, submissions, received)
        row = calls.record(transaction, session_id=session_id, name=name, made=made, digests=digests, about=about)
    admit.announce(desk, made, began_ns)
    return A1111Call(row, tuple(made))


def headers_of(call: A1111Call) -> dict[str, str]:
    """Return the headers that name a call, its jobs, and its ignored parameters."""
    headers = {JOB_IDS: ", ".join(str(job.id) for job in call.jobs), CALL: call.row.name}
    if call.row.about["ignored"]:
        headers[IGNORED] = ", ".join(call.row.about["ignored"])[:2000].encode("ascii", "replace").decode()
    return {name: "".join(char if char.isprintable() else "?" for char in text) for name, text in headers.items()}


def _held(desk: Desk, caller: Caller, call: A1111Call, body: Txt2Img | Img2Img) -> Held:
    """Return the answer that waits for a call's end. Of the body it keeps what the answer repeats."""
    echo = json.dumps(body.echo()).encode()
    return Held(partial(_answered, desk=desk, caller=caller, call=call, echo=echo), kept_bytes=len(echo))


async def _answered(request: Request, *, desk: Desk, caller: Caller, call: A1111Call, echo: bytes) -> Response:
    """Wait until a call ends and answer. If the client disconnects first, abandon the call."""
    headers = headers_of(call)
    try:
        jobs = await while_connected(request, lambda: _ended(desk, call))
        if jobs is None:
            await _abandon(desk, caller, call)
            return Response(status_code=499, headers=headers)
        ended = A1111Call(call.row, tuple(jobs))
        raise_failure(ended)
        # Previews of canceled jobs are looked up in Redis.
        return await desk.rooms.redis.run(caller.owner, answers.whole, desk, ended, echo, headers)
    except FarmError as error:
        refusal = problems.of(request, error)
        refusal.headers.update(headers)
        return refusal


async def _ended(desk: Desk, call: A1111Call) -> list[JobRow]:
    limit_s = desk.settings.call_seconds
    results = await asyncio.gather(*(desk.updates.wait_until_final(job.id, limit_s) for job in call.jobs))
    rows = [row for row in results if row is not None]
    if not all(JobState(row.state).is_final for row in rows):
        raise TooLate(f"The images were not ready within {limit_s:g} s. The jobs go on; see /v1/jobs.")
    return rows


async def _abandon(desk: Desk, caller: Caller, call: A1111Call) -> None:
    log.info("call.abandoned", jobs=[str(job.id) for job in call.jobs], kept=desk.settings.keep_abandoned)
    if not desk.settings.keep_abandoned:
        await desk.rooms.database.run(caller.owner, calls.cancel, desk, call.jobs)


def raise_failure(call: A1111Call) -> None:
    """Raise the error of the first job that failed or expired."""
    for job in call.jobs:
        if job.state == JobState.FAILED:
            kind = OutOfMemory if job.error_code == OutOfMemory.code else RenderFailed
            raise kind(job.error_message or "")
        if job.state == JobState.EXPIRED:
            raise RenderFailed(f"Job {job.id} expired in the queue.")


def _name(force_task_id: str | None) -> str:
    name = force_task_id or f"task({secrets.token_hex(8)})"
    if len(name) > MAX_NAME_CHARS or "\0" in name:
        raise InvalidRequest(f"force_task_id may have at most {MAX_NAME_CHARS} characters and must not contain NUL.")
    return name


def _digests(sent: Sent, body: Txt2Img | Img2Img, changes: dict[str, Any] | None) -> Digests:
    # The path: a body may mean something to each of the routes.
    return Digests(f"{sent.path} {sent.digest}", _legacy_digest(sent, body, changes))


def _legacy_digest(sent: Sent, body: Txt2Img | Img2Img, changes: dict[str, Any] | None) -> str:
    # Not of a list of fields: what another release takes for another request is rendered again, and not refused.
    return json_text.digest([type(body).__name__, body.model_dump(), changes], plain=sent.large)


def _farm(transaction: Transaction, desk: Desk, session_id: str, changes: dict[str, Any]) -> FarmFacts:
    checkpoints = sessions.checkpoints(transaction, desk)
    if not checkpoints.sha256s and not checkpoints.refused:
        raise UnknownCheckpoint("No gpu worker has announced a checkpoint yet; start a worker, then retry.")
    chosen = {**sessions.options(transaction, session_id), **changes}
    return FarmFacts(
        options=sessions.in_use(chosen, checkpoints),
        checkpoints=checkpoints,
        styles=styles.read(desk.settings.styles_file),
        draw=lambda last: secrets.randbelow(last + 1),
    )
