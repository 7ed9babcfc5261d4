"""Ceding: a job whose checkpoint this worker lost goes back into the queue, for workers that have it or until one has.

A file that vanishes, or turns bad while others have it whole, is no fault of the jobs that name it.
"""

from collections.abc import Sequence

import structlog

from shared.errors import BadWeights, DatabaseUnavailable, WeightsMissing
from shared.infra.db import Database
from worker.bundle import DeviceCheckpoints
from worker.fleet.claimable import doomed, loadable
from worker.fleet.members import Member, Roster
from worker.slots.open_checkpoints import OpenCheckpoints

log = structlog.get_logger(__name__)


class Ceding:
    """Closes checkpoints that their jobs found lost."""

    def __init__(
        self,
        db: Database,
        worker_id: str,
        residency: DeviceCheckpoints,
        opened: OpenCheckpoints,
        *,
        silent_after_s: float,
    ) -> None:
        self._db = db
        self._worker_id = worker_id
        self._residency = residency
        self._opened = opened
        self._roster = Roster(silent_after_s=silent_after_s)

    def cedes(self, checkpoint: str, result: object) -> bool:
        """Whether a job that gave this is left to others; then no more jobs of its checkpoint are claimed for now."""
        if not isinstance(result, BadWeights | WeightsMissing) or self._is_ours(checkpoint):
            return False
        self._opened.close(checkpoint)
        log.warning("checkpoint.ceded", checkpoint=checkpoint, **result.log_fields)
        return True

    def _is_ours(self, checkpoint: str) -> bool:
        holdings = self._residency.holdings()
        if checkpoint in loadable(holdings):
            return True
        try:
            return checkpoint in doomed(holdings, self._others(), {checkpoint})
        except DatabaseUnavailable:  # whom else there is can be asked by who claims it next
            return False

    def _others(self) -> Sequence[Member]:
        with self._db.transaction() as session:
            return [one for one in self._roster.members(session) if one.id != self._worker_id]
