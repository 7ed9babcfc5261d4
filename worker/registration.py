"""A gpu worker's entry in the fleet's list."""

import platform
from dataclasses import dataclass

import structlog

from shared.errors import FarmError
from shared.fleet import registry
from shared.infra.db import Database
from worker.bundle import DeviceCheckpoints

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Registration:
    """Writes the row of one worker."""

    db: Database
    worker_id: str
    residency: DeviceCheckpoints
    device_name: str
    slots: int

    def announce(self) -> None:
        """Put the worker on the list, with the checkpoint that it has loaded: it is ready to work."""
        name = self.residency.resident
        resident = next(one for one in self.residency.holdings() if one.checkpoint == name)
        with self.db.transaction() as session:
            registry.announce(
                session,
                worker_id=self.worker_id,
                checkpoint=name,
                size_bytes=resident.size_bytes,
                sha256=resident.sha256,
                keeps=self.residency.keeps,
                hostname=platform.node(),
                device=self.device_name,
                slots=self.slots,
            )
        log.info("worker.ready", checkpoint=name, device=self.device_name, slots=self.slots)

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
