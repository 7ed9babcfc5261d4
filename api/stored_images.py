"""Read finished images from the storage, compared with their rows, while their job may be deleted."""

from collections.abc import Sequence

import structlog

from api.desk import Desk
from shared.errors import ImageLost, ObjectDamaged, ObjectMissing
from shared.infra.tables import ImageRow
from shared.jobs import lifecycle

log = structlog.get_logger(__name__)


def fetch(desk: Desk, image: ImageRow) -> bytes:
    """Return an image's bytes, exactly those that its worker stored.

    Raises `Gone` if the job was deleted since its row was read, `ImageLost`, `ObjectDamaged` and `StorageUnavailable`.
    """
    try:
        return desk.storage.get_whole(image.key, sha256=image.sha256)
    except ObjectMissing as error:
        with desk.db.transaction() as session:
            lifecycle.get(session, image.job_id)  # raises if it is gone by now
        # Objects go before their rows: it is being removed at this moment, or else the storage has lost it.
        log.warning("image.missing", job_id=str(image.job_id), key=image.key)
        raise ImageLost(
            f"Image {image.index} of job {image.job_id} is no longer in the storage; "
            f"POST /v1/jobs/{image.job_id}/retry renders it again."
        ) from error
    except ObjectDamaged as error:
        log.warning("image.damaged", job_id=str(image.job_id), key=image.key)
        raise ObjectDamaged(f"Image {image.index} of job {image.job_id} came back damaged from the storage.") from error


def all_there(desk: Desk, images: Sequence[ImageRow]) -> bool:
    """Whether the storage gives back every one of these images. Raises `Gone` and `StorageUnavailable`."""
    try:
        for image in images:
            fetch(desk, image)
    except (ImageLost, ObjectDamaged):
        return False
    return True
