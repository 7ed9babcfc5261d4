"""Ends a process that cannot start. Celery logs and swallows the errors of signal handlers, but lets SystemExit pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from shared.errors import FarmError

log = structlog.get_logger(__name__)


@contextmanager
def exit_on_error(event: str) -> Iterator[None]:
    """End the process with status 1 on an error, which is logged as `event`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FarmError):
            log.critical(event, **error.log_fields)
        else:  # a process that is only half open would answer and do nothing
            log.critical(event, exc_info=error)
        raise SystemExit(1) from error
