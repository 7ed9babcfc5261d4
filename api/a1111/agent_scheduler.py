"""Routes of the Agent Scheduler extension: queue a task, show it, fetch its images later. Tasks are the session's calls."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from fastapi import Path, Query, Response
from pydantic import ValidationError

from api.a1111 import answers, calls, generation, options, translate
from api.a1111.answers import CallImage
from api.a1111.calls import A1111Call
from api.a1111.errors import NothingFound
from api.a1111.field_types import Text
from api.a1111.requests import Img2Img, Txt2Img
from api.a1111.sessions import SessionId
from api.admission.sent import SentDep
from api.admission.submissions import WebhookChoice
from api.callers import Reader, Submitter
from api.desk import Desk, DeskDep
from api.large_answers import LargeAnswer
from api.routing import Router, in_room
from api.v1 import zip_stream
from shared.errors import InvalidRequest
from shared.vocabulary.states import JobState

router = Router(prefix="/agent-scheduler/v1", strict_content_type=False)

Task = Annotated[str, Path(max_length=generation.MAX_NAME_CHARS)]
Limit = Annotated[int, Query(ge=1, le=200)]
_STATUSES = {
    JobState.QUEUED: "pending",
    JobState.RUNNING: "running",
    JobState.SUCCEEDED: "done",
    JobState.CANCELED: "interrupted",
    JobState.FAILED: "failed",
    JobState.EXPIRED: "failed",
}


class QueuedTxt2Img(Txt2Img):
    """A txt2img request to queue."""

    checkpoint: Text | None = None
    vae: Text | None = None
    callback_url: Text | None = None


class QueuedImg2Img(Img2Img):
    """An img2img request to queue."""

    checkpoint: Text | None = None
    vae: Text | None = None
    callback_url: Text | None = None


@router.post("/queue/txt2img", summary="Queue a txt2img task")
def queue_txt2img(
    body: QueuedTxt2Img, sent: SentDep, desk: DeskDep, caller: Submitter, session_id: SessionId
) -> dict[str, str]:
    """Queue a task and answer with its id. `callback_url` receives the farm's signed JSON webhook."""
    extra = _options_and_webhook(body)
    return _task_id(generation.begin(desk, caller, session_id, body, sent, translate.txt2img, **extra))


@router.post("/queue/img2img", summary="Queue an img2img task")
@in_room("intake")
def queue_img2img(
    body: QueuedImg2Img, sent: SentDep, desk: DeskDep, caller: Submitter, session_id: SessionId
) -> dict[str, str]:
    """Queue a task and answer with its id. `callback_url` receives the farm's signed JSON webhook."""
    extra = _options_and_webhook(body)
    return _task_id(generation.begin(desk, caller, session_id, body, sent, translate.img2img, **extra))


@router.get("/queue", summary="List pending tasks")
def queue(desk: DeskDep, _caller: Reader, session_id: SessionId, limit: Limit = 20) -> dict[str, Any]:
    """List the session's unfinished tasks, oldest first."""
    with desk.db.transaction() as transaction:
        under_way = calls.unfinished(transaction, session_id)
    running = next((call.row.name for call in under_way if call.is_running), None)
    return {
        "current_task_id": running,
        "pending_tasks": [_task(call, place) for place, call in enumerate(under_way[:limit])],
        "total_pending_tasks": len(under_way),
        "paused": False,
    }


@router.get("/history", summary="List finished tasks")
def history(desk: DeskDep, _caller: Reader, session_id: SessionId, limit: Limit = 20) -> dict[str, Any]:
    """List the session's latest finished tasks, newest first."""
    with desk.db.transaction() as transaction:
        latest = calls.recent(transaction, session_id, limit=limit)
    ended = [_task(call) for call in latest if call.is_final]
    return {"tasks": ended, "total": len(ended)}


@router.get("/task/{task_id}", summary="Show a task")
def show(task_id: Task, desk: DeskDep, _caller: Reader, session_id: SessionId) -> dict[str, Any]:
    """Show one task."""
    return {"success": True, "data": _task(_task_call(desk, session_id, task_id))}


@router.get("/task/{task_id}/position", summary="Show a task's position")
def position(task_id: Task, desk: DeskDep, _caller: Reader, session_id: SessionId) -> dict[str, Any]:
    """Show a task's position among the session's pending tasks."""
    call = _task_call(desk, session_id, task_id)
    with desk.db.transaction() as transaction:
        names = [one.row.name for one in calls.unfinished(transaction, session_id)]
    place = names.index(task_id) if task_id in names else None
    return {"success": True, "data": {"status": _status(call), "position": place}}


@router.get("/task/{task_id}/results", summary="Fetch a task's images", response_model=None)
@in_room("storage")
def results(
    task_id: Task,
    desk: DeskDep,
    _caller: Reader,
    session_id: SessionId,
    as_zip: Annotated[bool, Query(alias="zip")] = False,
) -> Response | dict[str, Any]:
    """Return a finished task's images with their infotexts, or a zip of them."""
    call = _task_call(desk, session_id, task_id)
    if _status(call) not in {"done", "interrupted"}:
        return {"success": False, "message": f"Task is {_status(call)}"}
    found = answers.sources(desk, call)
    if as_zip:
        files = ((f"{index}.png", partial(_file, one)) for index, one in enumerate(found))
        pieces = zip_stream.zipped(files, at=datetime.now(UTC))
        return LargeAnswer(
            pieces, needs_bytes=answers.needs_bytes(found, copies=zip_stream.COPIES), media_type=zip_stream.ZIP
        )
    return LargeAnswer(_listed(found), needs_bytes=answers.needs_bytes(found), media_type="application/json")


@router.delete("/task/{task_id}", summary="Cancel a task")
def cancel(task_id: Task, desk: DeskDep, _caller: Submitter, session_id: SessionId) -> dict[str, Any]:
    """Cancel an unfinished task."""
    call = _task_call(desk, session_id, task_id)
    calls.cancel(desk, call.jobs)
    return {"success": True, "message": f"Task {task_id} is canceled"}


def _options_and_webhook(body: QueuedTxt2Img | QueuedImg2Img) -> dict[str, Any]:
    """Return the options and the webhook that only queued requests have. Raises `InvalidRequest`."""
    overrides = {options.CHECKPOINT: body.checkpoint, options.VAE: body.vae}
    try:
        webhook = WebhookChoice(url=body.callback_url) if body.callback_url else None
    except ValidationError as error:
        raise InvalidRequest("callback_url must be an http or https URL.") from error
    return {"changes": {name: value for name, value in overrides.items() if value}, "webhook": webhook}


def _task_id(call: A1111Call) -> dict[str, str]:
    return {"task_id": call.row.name}


def _task_call(desk: Desk, session_id: str, task_id: str) -> A1111Call:
    if "\0" in task_id:
        raise InvalidRequest("The task id must not contain NUL.")
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
        "status": _status(call),
        "priority": call.jobs[0].priority if call.jobs else 0,
        "position": place,
        "result": None,
        "bookmarked": False,
        "job_ids": [str(job.id) for job in call.jobs],
        "created_at": call.row.created_at,
    }


def _status(call: A1111Call) -> str:
    """Return the status of a task: running if any job runs, else pending, else that of its worst job."""
    states = {JobState(job.state) for job in call.jobs}
    for state in (JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELED):
        if state in states:
            return _STATUSES[state]
    return _STATUSES[JobState.SUCCEEDED]


def _file(source: CallImage) -> bytes:
    return source.fetch().file


def _listed(found: Sequence[CallImage]) -> Iterator[bytes]:
    """Yield a task's images with their infotexts, as JSON."""
    before = b'{"success":true,"data":['
    for one in found:
        shown = one.fetch()
        yield before + b'{"image":"data:image/png;base64,'
        yield from answers.encoded(shown.file)
        yield b'","infotext":' + json.dumps(shown.text).encode() + b"}"
        before = b","
    yield b"]}" if found else before + b"]}"
