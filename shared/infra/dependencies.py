"""Start-up check of database, Redis and object storage.

A dependency that does not answer stops neither an api nor a courier, for it may come back. It is logged in one line with the
fix. A database that answers and cannot serve ends the process.
"""

from contextlib import ExitStack

import structlog

from shared.errors import DatabaseUnfit, FarmError
from shared.infra import broker
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.settings import Settings

log = structlog.get_logger(__name__)


def check(settings: Settings) -> None:
    """Ping database, Redis and storage over new connections; log each one that does not answer.

    Raises `SystemExit` for a database that no waiting makes fit.
    """
    with ExitStack() as closing:
        db = Database(settings, pool_size=1)
        closing.callback(db.close)
        redis = broker.connect(settings)
        closing.callback(redis.close)
        storage = Storage(settings, tries=1, read_s=settings.connect_seconds)
        for name, ask in {"postgres": db.ping, "redis": lambda: broker.check(redis), "storage": storage.check}.items():
            try:
                ask()
            except DatabaseUnfit as error:
                log.critical("dependency.unfit", dependency=name, **error.log_fields)
                raise SystemExit(1) from None
            except FarmError as error:
                log.warning("dependency.missing", dependency=name, **error.log_fields)
