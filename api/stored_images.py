"""Read finished images from the storage, while their job may be deleted."""

import structlog

from api.desk import Desk
from shared.errors import Gone, ObjectMissing
from shared.infra.tables import ImageRow
from shared.jobs import lifecycle

log = structlog.get_logger(__name__)


def fetch(desk: Desk, image: ImageRow) -> bytes:
    """Return an image's bytes. Raises `Gone` if the job was deleted since its row was read, and `StorageUnavailable`."""
    try:
        return desk.storage.get(image.key)
    except ObjectMissing as error:
        with desk.db.transaction() as session:
            lifecycle.get(session, image.job_id)  # raises if it is gone by now
        # Objects go before their rows: it is being removed at this moment, or else the storage has lost it.
        log.warning("image.missing", job_id=str(image.job_id), key=image.key)
        raise Gone(f"Image {image.index} of job {image.job_id} is no longer in the storage.") from error
