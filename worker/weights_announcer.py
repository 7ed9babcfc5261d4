"""Announces the LoRAs, embeddings and VAEs of a worker to the fleet, so that jobs may name them."""

from itertools import chain

import structlog

from shared.errors import DatabaseUnavailable
from shared.files.weights import Shelves
from shared.fleet import registry
from shared.infra.db import Database

# Well under `fleet.WEIGHTS_SEEN_WITHIN`, after which the fleet takes a file for gone.
RESCAN_S = 10.0

log = structlog.get_logger(__name__)


class WeightsAnnouncer:
    """Announces the files in a worker's weight folders."""

    def __init__(self, db: Database, shelves: Shelves) -> None:
        self._db = db
        self._shelves = shelves

    def announce(self) -> None:
        """Scan the folders and announce their files."""
        files = list(chain.from_iterable(shelf.files().values() for shelf in self._shelves))
        try:
            with self._db.transaction() as session:
                registry.announce_weights(session, files)
        except DatabaseUnavailable as error:
            log.warning("stock.not_announced", error=str(error))
