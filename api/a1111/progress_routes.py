"""Routes for calls that run: progress, interrupt, skip. A session sees and stops only its own calls."""

import base64
import io
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from PIL import Image
from sqlalchemy import func, select
from sqlalchemy.orm import Session as Transaction

from api.a1111 import answers, calls, progress
from api.a1111.calls import A1111Call
from api.a1111.field_types import Flag, Int, Lax, Text
from api.a1111.progress import CallProgress
from api.a1111.sessions import SessionId
from api.callers import Caller, Reader, Submitter
from api.desk import Desk, DeskDep
from api.routing import Router
from shared.errors import BrokerUnavailable, TooBusy
from shared.infra import previews
from shared.infra.tables import JobRow
from shared.vocabulary.states import JobState

router = Router(strict_content_type=False)


class ProgressRequest(Lax):
    """The task to show, and the id of the preview that the client already has."""

    id_task: Text = ""
    id_live_preview: Int = -1
    live_preview: Flag = True


@router.get("/sdapi/v1/progress", summary="Show the progress of the running call")
async def show(
    desk: DeskDep, caller: Reader, session_id: SessionId, skip_current_image: Annotated[str, Query(max_length=10)] = ""
) -> dict[str, Any]:
    """Show the progress of the session's oldest running call; zeros when it has none."""
    call, estimate = await desk.rooms.database.run(caller.owner, _current, desk, session_id)
    shows_image = call is not None and skip_current_image.lower() not in {"true", "1", "yes", "on"}
    return {
        "progress": estimate.share,
        "eta_relative": estimate.eta_s,
        "state": estimate.state(),
        "current_image": await _current_image(desk, caller, call) if call and shows_image else None,
        "textinfo": None if call is None or call.is_running else "In queue",
    }


@router.post("/sdapi/v1/interrupt", summary="Interrupt the running call")
def interrupt(desk: DeskDep, _caller: Submitter, session_id: SessionId) -> dict[str, Any]:
    """Cancel the call that `/progress` shows. The call answers with the images finished so far."""
    with desk.db.transaction() as transaction:
        call = calls.current(transaction, session_id)
    if call is not None:
        calls.cancel(desk, call.jobs)
    return {}


@router.post("/sdapi/v1/skip", summary="Skip the current iteration")
def skip(desk: DeskDep, _caller: Submitter, session_id: SessionId) -> None:
    """Cancel the iteration that `/progress` shows; the other iterations go on."""
    with desk.db.transaction() as transaction:
        call = calls.current(transaction, session_id)
    if call is not None:
        unfinished = [job for job in call.jobs if not JobState(job.state).is_final]
        calls.cancel(desk, [progress.running(call) or unfinished[0]])


@router.post("/internal/progress", summary="Show the progress of a task")
async def show_named(body: ProgressRequest, desk: DeskDep, caller: Reader, session_id: SessionId) -> dict[str, Any]:
    """Show the progress of the call with this `force_task_id`."""
    call, estimate, names = await desk.rooms.database.run(caller.owner, _named, desk, session_id, body.id_task)
    if call is None:
        return _named_progress(body)
    if call.is_running:
        shown = await _live_preview(desk, caller, call, body)
        return _named_progress(body, active=True, progress=estimate.share, eta=estimate.eta_s, **shown)
    if call.is_final:
        return _named_progress(body, completed=True)
    place = names.index(body.id_task) + 1 if body.id_task in names else 1
    return _named_progress(body, queued=True, textinfo=f"In queue: {place}/{max(len(names), place)}")


def _current(desk: Desk, session_id: str) -> tuple[A1111Call | None, CallProgress]:
    with desk.db.transaction() as transaction:
        call = calls.current(transaction, session_id)
        return call, progress.of(call, _now(transaction))


def _named(desk: Desk, session_id: str, name: str) -> tuple[A1111Call | None, CallProgress, list[str]]:
    with desk.db.transaction() as transaction:
        call = calls.find(transaction, session_id, name)
        names = [one.row.name for one in calls.unfinished(transaction, session_id)]
        return call, progress.of(call, _now(transaction)), names


def _named_progress(body: ProgressRequest, **known: Any) -> dict[str, Any]:
    """Return A1111's answer: nothing is known of a task but what is given."""
    return {
        "active": False,
        "queued": False,
        "completed": False,
        "progress": None,
        "eta": None,
        "live_preview": None,
        "id_live_preview": body.id_live_preview,
        "textinfo": None,
        **known,
    }


async def _live_preview(desk: Desk, caller: Caller, call: A1111Call, body: ProgressRequest) -> dict[str, Any]:
    """Return the latest preview, unless the client has it. Its id is the number of steps done."""
    image = await _current_image(desk, caller, call) if body.live_preview else None
    preview_id = sum(job.steps_done for job in call.jobs)
    if image is None or preview_id == body.id_live_preview:
        return {}
    return {"live_preview": f"data:image/png;base64,{image}", "id_live_preview": preview_id}


@router.get("/internal/pending-tasks", summary="List pending tasks")
def pending(desk: DeskDep, _caller: Reader, session_id: SessionId) -> dict[str, Any]:
    """List the task ids of the session's calls that wait in the queue."""
    with desk.db.transaction() as transaction:
        waiting = [call.row.name for call in calls.unfinished(transaction, session_id) if not call.is_running]
    return {"size": len(waiting), "tasks": waiting}


@router.get("/internal/ping", summary="Ping")
async def ping(_caller: Reader) -> dict[str, Any]:
    """Answer, so that clients know that the server is up."""
    return {}


def _now(transaction: Transaction) -> datetime:
    now: datetime = transaction.scalars(select(func.now())).one()
    return now


async def _current_image(desk: Desk, caller: Caller, call: A1111Call) -> str | None:
    """Return the latest preview of the running job, as PNG in base64. Without one progress is reported all the same."""
    job = progress.running(call)
    with suppress(BrokerUnavailable, TooBusy):
        return await desk.rooms.redis.run(caller.owner, _preview, desk, job) if job else None
    return None


def _preview(desk: Desk, job: JobRow) -> str | None:
    preview = previews.get(desk.redis, job.id, 0)
    if preview is None:
        return None
    with Image.open(io.BytesIO(preview)) as picture:
        return base64.b64encode(answers.to_png(picture.convert("RGB"))).decode()
