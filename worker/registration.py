"""A gpu worker's entry in the fleet's list."""

import platform
from dataclasses import dataclass

import structlog

from shared.errors import FarmError
from shared.files.checkpoints import CheckpointFile
from shared.fleet import registry
from shared.infra.db import Database

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registration:
    """Writes the row of one worker; `sha256` is the digest of the checkpoint that it serves."""

    db: Database
    worker_id: str
    file: CheckpointFile
    sha256: str | None
    device_name: str
    slots: int

    def announce(self) -> None:
        """Put the worker on the list: it is ready to work."""
        with self.db.transaction() as session:
            registry.announce(
                session,
                worker_id=self.worker_id,
                checkpoint=self.file.name,
                size_bytes=self.file.size_bytes,
                sha256=self.sha256,
                hostname=platform.node(),
                device=self.device_name,
                slots=self.slots,
            )
        log.info("worker.ready", checkpoint=self.file.name, device=self.device_name, slots=self.slots)

    def mark_unfit(self, reason: str) -> None:
        """Say on the list why the worker takes itself out of service."""
        with self.db.transaction() as session:
            registry.mark_unfit(session, self.worker_id, reason)

    def retire(self) -> None:
        """Take the worker off the list. A database that is away costs no more than a silent worker on it."""
        try:
            with self.db.transaction() as session:
                registry.retire(session, self.worker_id)
        except FarmError as error:
            log.warning("worker.not_retired", error=str(error))
