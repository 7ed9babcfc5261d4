"""What clients ask and do while a call is under way: progress, interrupt, skip. Each session sees and stops its own alone."""

import base64
import io
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from PIL import Image
from sqlalchemy import func, select
from sqlalchemy.orm import Session as Transaction

from api.a1111 import answers, calls, progress
from api.a1111.calls import A1111Call
from api.a1111.field_types import Flag, Int, Lax, Text
from api.a1111.sessions import SessionId
from api.callers import Reader, Submitter
from api.desk import Desk, DeskDep
from shared.errors import BrokerUnavailable
from shared.infra import previews
from shared.infra.db import JobRow
from shared.vocabulary.states import JobState

router = APIRouter(strict_content_type=False)


class Asked(Lax):
    """Which call is meant, and which preview its client has already."""

    id_task: Text = ""
    id_live_preview: Int = -1
    live_preview: Flag = True


@router.get("/sdapi/v1/progress", summary="Show how far the session's call is")
def show(
    desk: DeskDep, _caller: Reader, session_id: SessionId, skip_current_image: Annotated[str, Query(max_length=10)] = ""
) -> dict[str, Any]:
    """Show how far the session's call is that began first; zeros when it has none."""
    with desk.db.transaction() as transaction:
        call = calls.current(transaction, session_id)
        far = progress.of(call, _now(transaction))
    is_wanted = call is not None and skip_current_image.lower() not in {"true", "1", "yes", "on"}
    return {
        "progress": far.share,
        "eta_relative": far.eta_s,
        "state": far.state(),
        "current_image": _current_image(desk, call) if call and is_wanted else None,
        "textinfo": None if call is None or call.is_running else "In queue",
    }


@router.post("/sdapi/v1/interrupt", summary="Stop the session's call")
def interrupt(desk: DeskDep, _caller: Submitter, session_id: SessionId) -> dict[str, Any]:
    """Cancel the session's call that `progress` shows. It answers with what is finished."""
    with desk.db.transaction() as transaction:
        call = calls.current(transaction, session_id)
    if call is not None:
        calls.cancel(desk, call.jobs)
    return {}


@router.post("/sdapi/v1/skip", summary="Skip an iteration of the session's call")
def skip(desk: DeskDep, _caller: Submitter, session_id: SessionId) -> None:
    """Cancel the iteration that `progress` shows; the others go on."""
    with desk.db.transaction() as transaction:
        call = calls.current(transaction, session_id)
    if call is not None:
        unfinished = [job for job in call.jobs if not JobState(job.state).is_final]
        calls.cancel(desk, [progress.running(call) or unfinished[0]])


@router.post("/internal/progress", summary="Show how far a named call is")
def show_named(body: Asked, desk: DeskDep, _caller: Reader, session_id: SessionId) -> dict[str, Any]:
    """Show how far the call of a `force_task_id` is."""
    with desk.db.transaction() as transaction:
        call = calls.find(transaction, session_id, body.id_task)
        far = progress.of(call, _now(transaction))
        ahead = [one.row.name for one in calls.unfinished(transaction, session_id)]
    is_active = call is not None and call.is_running
    is_queued = call is not None and not call.is_final and not is_active
    image = _current_image(desk, call) if call and is_active and body.live_preview else None
    shown_at = sum(job.steps_done for job in call.jobs) if call else 0
    is_new = image is not None and shown_at != body.id_live_preview
    place = ahead.index(body.id_task) + 1 if body.id_task in ahead else 1
    return {
        "active": is_active,
        "queued": is_queued,
        "completed": call is not None and call.is_final,
        "progress": far.share if is_active else None,
        "eta": far.eta_s if is_active else None,
        "live_preview": f"data:image/png;base64,{image}" if is_new else None,
        "id_live_preview": shown_at if is_new else body.id_live_preview,
        "textinfo": f"In queue: {place}/{max(len(ahead), place)}" if is_queued else None,
    }


@router.get("/internal/pending-tasks", summary="List the session's calls under way")
def pending(desk: DeskDep, _caller: Reader, session_id: SessionId) -> dict[str, Any]:
    """List the names of the session's calls that have not begun to render."""
    with desk.db.transaction() as transaction:
        waiting = [call.row.name for call in calls.unfinished(transaction, session_id) if not call.is_running]
    return {"size": len(waiting), "tasks": waiting}


@router.get("/internal/ping", summary="Say that the api is there")
async def ping(_caller: Reader) -> dict[str, Any]:
    """Say that the api is there."""
    return {}


def _now(transaction: Transaction) -> datetime:
    now: datetime = transaction.scalars(select(func.now())).one()
    return now


def _current_image(desk: Desk, call: A1111Call) -> str | None:
    """Return the latest preview of what runs, as PNG in base64."""
    job = progress.running(call)
    preview = _preview(desk, job) if job else None
    if preview is None:
        return None
    with Image.open(io.BytesIO(preview)) as picture:
        return base64.b64encode(answers.to_png(picture.convert("RGB"))).decode()


def _preview(desk: Desk, job: JobRow) -> bytes | None:
    try:
        return previews.get(desk.redis, job.id, 0)
    except BrokerUnavailable:
        return None  # progress is told all the same
