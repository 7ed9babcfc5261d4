"""Delete a job and its images."""

from api.callers import Submitter
from api.desk import DeskDep, JobId
from api.openapi import documented
from api.routing import Router, in_room
from shared.jobs import removal

router = Router(prefix="/v1/jobs", tags=["jobs"], responses=documented(401, 403, 422, 429, 503))


@router.delete("/{job_id}", status_code=204, summary="Delete a job", responses=documented(404, 409, 410))
@in_room("storage")
def delete(job_id: JobId, desk: DeskDep, caller: Submitter) -> None:
    """Delete a final job and its images, for good. Its id answers 410 from then on."""
    with desk.db.transaction() as session:
        row = removal.removable(session, job_id, owner=caller.sees_only)
    # Outside of any transaction: the storage may take its time. Should it fail, the job is still there to be deleted again.
    desk.storage.delete_all(removal.objects(row))
    with desk.db.transaction() as session:
        removal.remove(session, [row])
