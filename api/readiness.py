"""Readiness: whether Postgres, Redis and the storage answer, asked at once over connections and threads kept for that alone."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog

from shared.errors import BrokerUnavailable, FarmError
from shared.infra import broker
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.settings import Settings

# Of each dependency. Probes of orchestrators commonly wait five seconds.
ANSWER_S = 4.0
_CONNECT_S = 2.0
_READ_S = 1.5
log = structlog.get_logger(__name__)

_SILENT = f"does not answer within {ANSWER_S:g} s"


class Dependencies:
    """Asks the dependencies. However many callers come at once, each dependency is asked once. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        brief = settings.model_copy(update={"connect_seconds": min(settings.connect_seconds, _CONNECT_S)})
        self._db = Database(brief, pool_size=1, patience_s=_READ_S)
        self._redis = broker.connect(brief, hasty=True)
        storage = Storage(brief, tries=1, read_s=_READ_S)
        self._pings: Mapping[str, Callable[[], None]] = {
            "postgres": self._db.ping,
            "redis": lambda: broker.check(self._redis),
            "storage": storage.ping,
        }
        self._threads = ThreadPoolExecutor(len(self._pings), "readiness")
        self._asking: asyncio.Task[dict[str, str]] | None = None

    async def complaints(self) -> Mapping[str, str]:
        """Return what is wrong with each dependency; an empty text for one that answers."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all())
        # Whoever leaves must not take the answer from the others.
        return await asyncio.shield(self._asking)

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._db.close()
        self._redis.close()

    async def _ask_all(self) -> dict[str, str]:
        said = await asyncio.gather(*map(self._ask, self._pings.values()))
        return dict(zip(self._pings, said, strict=True))

    async def _ask(self, ping: Callable[[], None]) -> str:
        try:
            await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._threads, ping), ANSWER_S)
        except TimeoutError:
            return _SILENT
        except FarmError as error:
            # Anyone may ask: what else it said, with names and addresses, is for the log.
            log.warning("dependency.away", **error.log_fields)
            told = error if isinstance(error, BrokerUnavailable) else type(error)()
            return f"{told} Fix: {error.fix}." if error.fix else str(told)
        return ""
