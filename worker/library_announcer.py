"""Announces a worker's library to the fleet: which checkpoints it can load, from how near, and which not."""

from collections.abc import Callable, Mapping, Sequence

import structlog

from shared.errors import DatabaseUnavailable
from shared.fleet import holdings
from shared.fleet.holdings import Holding
from shared.infra.db import Database

LOOK_S = 5.0
# A price is a mean of measurements: only what would change a choice is worth a write.
MARKED = 0.25

log = structlog.get_logger(__name__)


class LibraryAnnouncer:
    """Rescans the library of one worker and announces what has changed."""

    def __init__(
        self, db: Database, worker_id: str, rescan: Callable[[], object], library: Callable[[], Sequence[Holding]]
    ) -> None:
        self._db = db
        self._worker_id = worker_id
        self._rescan = rescan
        self._library = library
        self._announced: Mapping[str, Holding] = {}

    def renew(self) -> None:
        """Look for files that came or went, and announce."""
        self._rescan()
        self.announce()

    def announce(self) -> None:
        """Announce what differs from what was announced last. A database that is away is told the next time."""
        present = {one.checkpoint: one for one in self._library()}
        changed = [one for name, one in present.items() if _differs(one, self._announced.get(name))]
        is_other = present.keys() != self._announced.keys() or any(
            _is_other_file(one, self._announced[one.checkpoint]) for one in changed
        )
        if not changed and not is_other:
            return
        try:
            with self._db.transaction() as session:
                if is_other:
                    holdings.hold(session, self._worker_id, [*present.values()])
                else:
                    holdings.hold_also(session, self._worker_id, changed)
        except DatabaseUnavailable as error:
            log.warning("library.not_announced", **error.log_fields)
            return
        self._announced = {**present} if is_other else {**self._announced, **{one.checkpoint: one for one in changed}}


def _differs(one: Holding, before: Holding | None) -> bool:
    if before is None or one.tier != before.tier or one.refused != before.refused or _is_other_file(one, before):
        return True
    return abs(one.price_s - before.price_s) > MARKED * before.price_s


def _is_other_file(one: Holding, before: Holding) -> bool:
    return (one.size_bytes, one.sha256) != (before.size_bytes, before.sha256)
