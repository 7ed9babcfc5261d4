"""The routes of the queue that people add to the original: submit, look, fetch later. Tasks are the session's calls."""

import base64
import io
import zipfile
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import ValidationError

from api.a1111 import answers, calls, generation, options, translate
from api.a1111.calls import A1111Call
from api.a1111.errors import NothingFound
from api.a1111.field_types import Text
from api.a1111.requests import Img2Img, Txt2Img
from api.a1111.sessions import SessionId
from api.admission.sent import SentDep
from api.admission.submissions import WebhookChoice
from api.callers import Reader, Submitter
from api.desk import Desk, DeskDep
from shared.errors import InvalidRequest
from shared.vocabulary.states import JobState

router = APIRouter(prefix="/agent-scheduler/v1", strict_content_type=False)

Task = Annotated[str, Path(max_length=generation.MAX_NAME_CHARS)]
Limit = Annotated[int, Query(ge=1, le=200)]
_WORDS = {
    JobState.QUEUED: "pending",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "done",
    JobState.CANCELED: "interrupted",
    JobState.FAILED: "failed",
    JobState.EXPIRED: "failed",
}


class QueuedTxt2Img(Txt2Img):
    """Text to image, later."""

    checkpoint: Text | None = None
    vae: Text | None = None
    callback_url: Text | None = None


class QueuedImg2Img(Img2Img):
    """Image to image, later."""

    checkpoint: Text | None = None
    vae: Text | None = None
    callback_url: Text | None = None


@router.post("/queue/txt2img", summary="Queue text to image")
def queue_txt2img(
    body: QueuedTxt2Img, sent: SentDep, desk: DeskDep, caller: Submitter, session_id: SessionId
) -> dict[str, str]:
    """Queue a request and answer at once. `callback_url` gets the farm's webhook."""
    how = _how(body)
    return _named(generation.begin(desk, caller, session_id, body, sent, translate.txt2img, **how))


@router.post("/queue/img2img", summary="Queue image to image")
def queue_img2img(
    body: QueuedImg2Img, sent: SentDep, desk: DeskDep, caller: Submitter, session_id: SessionId
) -> dict[str, str]:
    """Queue a request and answer at once. `callback_url` gets the farm's webhook."""
    how = _how(body)
    return _named(generation.begin(desk, caller, session_id, body, sent, translate.img2img, **how))


@router.get("/queue", summary="List tasks under way")
def queue(desk: DeskDep, _caller: Reader, session_id: SessionId, limit: Limit = 20) -> dict[str, Any]:
    """List the session's tasks that have not ended, oldest first."""
    with desk.db.transaction() as transaction:
        under_way = calls.unfinished(transaction, session_id)
    running = next((call.row.name for call in under_way if call.is_running), None)
    return {
        "current_task_id": running,
        "pending_tasks": [_task(call, place) for place, call in enumerate(under_way[:limit])],
        "total_pending_tasks": len(under_way),
        "paused": False,
    }


@router.get("/history", summary="List tasks that have ended")
def history(desk: DeskDep, _caller: Reader, session_id: SessionId, limit: Limit = 20) -> dict[str, Any]:
    """List the session's latest tasks that have ended, newest first."""
    with desk.db.transaction() as transaction:
        latest = calls.recent(transaction, session_id, limit=limit)
    ended = [_task(call) for call in latest if call.is_final]
    return {"tasks": ended, "total": len(ended)}


@router.get("/task/{task_id}", summary="Show a task")
def show(task_id: Task, desk: DeskDep, _caller: Reader, session_id: SessionId) -> dict[str, Any]:
    """Show one task."""
    return {"success": True, "data": _task(_found(desk, session_id, task_id))}


@router.get("/task/{task_id}/position", summary="Show a task's place")
def position(task_id: Task, desk: DeskDep, _caller: Reader, session_id: SessionId) -> dict[str, Any]:
    """Show where a task stands among the session's own."""
    call = _found(desk, session_id, task_id)
    with desk.db.transaction() as transaction:
        names = [one.row.name for one in calls.unfinished(transaction, session_id)]
    place = names.index(task_id) if task_id in names else None
    return {"success": True, "data": {"status": _word(call), "position": place}}


@router.get("/task/{task_id}/results", summary="Fetch a task's pictures", response_model=None)
def results(
    task_id: Task,
    desk: DeskDep,
    _caller: Reader,
    session_id: SessionId,
    as_zip: Annotated[bool, Query(alias="zip")] = False,
) -> Response | dict[str, Any]:
    """Return a finished task's pictures with their texts, or all of them in a ZIP file."""
    call = _found(desk, session_id, task_id)
    if _word(call) not in {"done", "interrupted"}:
        return {"success": False, "message": f"Task is {_word(call)}"}
    shown = answers.pictures(desk, call)
    if as_zip:
        return Response(_zipped([one.file for one in shown]), media_type="application/zip")
    pictures = [
        {"image": f"data:image/png;base64,{base64.b64encode(one.file).decode()}", "infotext": one.text} for one in shown
    ]
    return {"success": True, "data": pictures}


@router.delete("/task/{task_id}", summary="Cancel a task")
def cancel(task_id: Task, desk: DeskDep, _caller: Submitter, session_id: SessionId) -> dict[str, Any]:
    """Cancel a task that has not ended."""
    call = _found(desk, session_id, task_id)
    calls.cancel(desk, call.jobs)
    return {"success": True, "message": f"Task {task_id} is canceled"}


def _how(body: QueuedTxt2Img | QueuedImg2Img) -> dict[str, Any]:
    """Return what a queued request says beyond one that waits."""
    chosen = {options.CHECKPOINT: body.checkpoint, options.VAE: body.vae}
    try:
        webhook = WebhookChoice(url=body.callback_url) if body.callback_url else None
    except ValidationError as error:
        raise InvalidRequest("callback_url is no URL that can be called.") from error
    return {"changes": {name: value for name, value in chosen.items() if value}, "webhook": webhook}


def _named(call: A1111Call) -> dict[str, str]:
    return {"task_id": call.row.name}


def _found(desk: Desk, session_id: str, task_id: str) -> A1111Call:
    if "\0" in task_id:
        raise InvalidRequest("A task's id has no NUL in it.")
    with desk.db.transaction() as transaction:
        call = calls.find(transaction, session_id, task_id)
    if call is None:
        raise NothingFound("Task not found")
    return call


def _task(call: A1111Call, place: int | None = None) -> dict[str, Any]:
    return {
        "id": call.row.name,
        "api_task_id": call.row.name,
        "name": None,
        "type": call.row.about["kind"],
        "status": _word(call),
        "priority": call.jobs[0].priority if call.jobs else 0,
        "position": place,
        "result": None,
        "bookmarked": False,
        "job_ids": [str(job.id) for job in call.jobs],
        "created_at": call.row.created_at,
    }


def _word(call: A1111Call) -> str:
    """Say in one word how a task's jobs stand: that of the one that is least far, or went worst."""
    states = {JobState(job.state) for job in call.jobs}
    for state in (JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELED):
        if state in states:
            return _WORDS[state]
    return _WORDS[JobState.SUCCEEDED]


def _zipped(files: list[bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for index, file in enumerate(files):
            archive.writestr(f"{index}.png", file)
    return out.getvalue()
