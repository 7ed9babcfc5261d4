"""What a process cannot start with ends it: Celery logs and swallows the errors of signal handlers, but lets SystemExit pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from shared.errors import FarmError

log = structlog.get_logger(__name__)


@contextmanager
def exit_on_error(event: str, *, close: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End the process with status 1 on an error, told under the name `event`; `close` ends what has begun."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FarmError):
            log.critical(event, **error.log_fields)
        else:  # a process that is only half open would answer and do nothing
            log.critical(event, exc_info=error)
        close()
        raise SystemExit(1) from error
