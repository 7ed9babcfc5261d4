"""Cache of API keys with a short time to live: most requests cost no query, and changes take effect within seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from api.auth import keys
from api.auth.keys import Token
from api.limits.owners import NOBODY
from shared.infra.db import Database
from shared.infra.tables import KeyRow

REMEMBER_S = 5.0
# A token that is unknown is asked for again this soon, so that a key works the moment it is made known.
REMEMBER_UNKNOWN_S = 1.0
MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class CachedKey:
    """Cache entry: the row (None for an unknown token), the database's time of the query, and the expiry (monotonic clock)."""

    row: KeyRow | None
    asked_at: datetime | None
    until: float


class KeyCache:
    """Looks up the key of a token. Thread-safe."""

    def __init__(self, db: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._entries: dict[tuple[str, bytes], CachedKey] = {}

    def remembered(self, token: Token) -> CachedKey | None:
        """Return the cached entry of a token; None if it must be fetched."""
        entry = self._entries.get((token.prefix, token.digest))
        return entry if entry and entry.until > self._clock() else None

    def owner_of(self, token: Token) -> str:
        """Return whose key a token was when it was last looked up; all strangers are nobody."""
        entry = self._entries.get((token.prefix, token.digest))
        return entry.row.id if entry and entry.row else NOBODY

    def fetch(self, token: Token) -> CachedKey:
        """Query the table and cache the result. Raises `DatabaseUnavailable`."""
        if (found := self.remembered(token)) is not None:
            return found  # by another request of the same crowd
        with self._db.transaction() as session:
            row, asked_at = keys.find(session, token) or (None, None)
        entry = CachedKey(row, asked_at, self._clock() + (REMEMBER_S if row else REMEMBER_UNKNOWN_S))
        if len(self._entries) >= MAX_REMEMBERED:
            self._entries.clear()
        self._entries[token.prefix, token.digest] = entry
        return entry
