"""The keys that this process has seen lately, so that a request costs no query. What changes in the table acts within seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from api.auth import keys
from api.auth.keys import Token
from shared.infra.db import Database, KeyRow

REMEMBER_S = 5.0
# A token that is unknown is asked for again this soon, so that a key works the moment it is made known.
REMEMBER_UNKNOWN_S = 1.0
MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class CachedKey:
    """What was found for a prefix, and when that must be asked for again, on the process's clock."""

    row: KeyRow | None
    asked_at: datetime | None
    until: float


class KeyCache:
    """Finds the key of a token. Any thread may ask."""

    def __init__(self, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._known: dict[tuple[str, bytes], CachedKey] = {}

    def remembered(self, token: Token) -> CachedKey | None:
        """Return what is known of a token without asking anyone; None when it must be fetched."""
        known = self._known.get((token.prefix, token.digest))
        return known if known and known.until > self._clock() else None

    def fetch(self, token: Token) -> CachedKey:
        """Ask the table, and remember. Raises `DatabaseUnavailable`."""
        with self._db.transaction() as session:
            row, asked_at = keys.find(session, token) or (None, None)
        known = CachedKey(row, asked_at, self._clock() + (REMEMBER_S if row else REMEMBER_UNKNOWN_S))
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[token.prefix, token.digest] = known
        return known
