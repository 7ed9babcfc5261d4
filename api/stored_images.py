"""Read pictures of jobs from the storage, finished images and inputs: whole, while their job may be deleted."""

from collections.abc import Sequence
from typing import Literal, TypeAlias
from uuid import UUID

import structlog

from api.desk import Desk
from shared.errors import Gone, ImageLost, ImageNotFound, ObjectDamaged, ObjectMissing
from shared.infra.storage import input_digest
from shared.infra.tables import ImageRow, JobRow
from shared.jobs import lifecycle

InputField: TypeAlias = Literal["init_image", "mask_image"]

log = structlog.get_logger(__name__)


def fetch(desk: Desk, image: ImageRow) -> bytes:
    """Return an image's bytes, exactly those that its worker stored.

    Raises `Gone` if the job was deleted since its row was read, `ImageLost`, `ObjectDamaged` and `StorageUnavailable`.
    """
    return _of_image(desk, image, "fetch")


def thumbnail(desk: Desk, image: ImageRow) -> bytes:
    """Return an image made small, as WebP. Raises as `fetch`."""
    return _of_image(desk, image, "make_thumbnail")


def all_there(desk: Desk, images: Sequence[ImageRow]) -> bool:
    """Whether the storage gives back every one of these images. Raises `Gone` and `StorageUnavailable`."""
    try:
        for image in images:
            fetch(desk, image)
    except (ImageLost, ObjectDamaged):
        return False
    return True


def missed(desk: Desk, rows: Sequence[JobRow | None], *, lost: Sequence[int], damaged: Sequence[int]) -> set[int]:
    """Log the images that a sheet had to do without, by their jobs' indices; return those whose job is removed by now."""
    removed = set()
    for index in (*lost, *damaged):
        row = rows[index]
        assert row is not None  # noqa: S101 - it had an image
        event = "image.missing" if index in lost else "image.damaged"
        try:
            if index in lost:
                _see_job(desk, row.id)
            log.warning(event, job_id=str(row.id), key=row.images[0].key)
        except Gone:
            removed.add(index)
    return removed


def input_key(job: JobRow, field: InputField) -> str:
    """Return the key of a picture that a job started from. Raises `ImageNotFound` where it had none."""
    key: str | None = job.params.get(field)
    if key is None:
        raise ImageNotFound(f"Job {job.shown_id} has no {field}.")
    return key


def input_bytes(desk: Desk, job: JobRow, field: InputField) -> int:
    """Return the size of a picture that a job started from; 0 for one that is lost, of which `fetch_input` tells more."""
    try:
        return desk.storage.size(input_key(job, field))
    except ObjectMissing:
        return 0


def fetch_input(desk: Desk, job: JobRow, field: InputField) -> bytes:
    """Return a picture that a job started from, as PNG. Raises `ImageNotFound`, `Gone` if it is lost, and as `fetch`."""
    key, what = input_key(job, field), f"The {field} of job {job.shown_id}"
    try:
        return _whole(desk, job.id, key, input_digest(key), what)
    except ObjectMissing as error:
        raise Gone(f"{what} is no longer in the storage.") from error


def _of_image(desk: Desk, image: ImageRow, act: str) -> bytes:
    what = f"Image {image.index} of job {image.job_id}"
    try:
        return _whole(desk, image.job_id, image.key, image.sha256, what, act=act)
    except ObjectMissing as error:
        again = f"POST /v1/jobs/{image.job_id}/retry renders it again"
        raise ImageLost(f"{what} is no longer in the storage; {again}.") from error


def _whole(desk: Desk, job_id: UUID, key: str, sha256: str, what: str, *, act: str = "fetch") -> bytes:
    try:
        # One after another costs others nothing that they would feel; what comes in crowds is read in the annex.
        return desk.annex.do(act, here=not desk.rooms.storage.is_crowded, key=key, sha256=sha256).data
    except ObjectMissing:
        _see_job(desk, job_id)
        # Objects go before their rows: it is being removed at this moment, or else the storage has lost it.
        log.warning("image.missing", job_id=str(job_id), key=key)
        raise
    except ObjectDamaged as error:
        log.warning("image.damaged", job_id=str(job_id), key=key)
        raise ObjectDamaged(f"{what} came back damaged from the storage.") from error


def _see_job(desk: Desk, job_id: UUID) -> None:
    """Raise `Gone` if a job was removed."""
    with desk.db.transaction() as session:
        lifecycle.get(session, job_id)
