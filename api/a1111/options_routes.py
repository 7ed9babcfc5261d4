"""Option routes: show and set the session's options; refresh has workers look for files, reload does nothing on a farm."""

from typing import Any

from api.a1111 import options, sessions
from api.a1111.field_types import Mapping
from api.a1111.sessions import SessionId
from api.callers import Reader, Submitter
from api.desk import DeskDep
from api.routing import Router, in_room
from shared.infra import events

router = Router(prefix="/sdapi/v1", strict_content_type=False)


@router.get("/options", summary="Show options")
def get_options(desk: DeskDep, session_id: SessionId) -> dict[str, Any]:
    """Show all options of this session."""
    with desk.db.transaction() as transaction:
        chosen = sessions.options(transaction, session_id)
        checkpoints = sessions.checkpoints(transaction, desk)
    return options.whole(sessions.in_use(chosen, checkpoints), checkpoints)


@router.post("/options", summary="Set options")
def set_options(body: Mapping, desk: DeskDep, _caller: Submitter, session_id: SessionId) -> None:
    """Set options of this session only, such as the checkpoint. Read-only and unknown options are ignored."""
    with desk.db.transaction() as transaction:
        chosen = options.changes(body, sessions.checkpoints(transaction, desk))
        if chosen:
            sessions.choose(transaction, session_id, chosen)


@router.post("/refresh-checkpoints", summary="Look for new files")
@router.post("/refresh-vae", summary="Look for new files")
@router.post("/refresh-loras", summary="Look for new files")
@router.post("/refresh-embeddings", summary="Look for new files")
@in_room("redis")
def refresh(_caller: Reader, desk: DeskDep) -> None:
    """Ask all workers to look through their folders now. They do so by themselves every ten seconds."""
    events.ask_rescan(desk.redis)


@router.post("/unload-checkpoint", summary="Do nothing")
@router.post("/reload-checkpoint", summary="Do nothing")
async def reload(_caller: Submitter) -> dict[str, Any]:
    """Do nothing: workers load checkpoints, and let go of them, as jobs want them."""
    return {}
