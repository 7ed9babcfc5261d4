"""Structured logs on stdout: fixed event names (`noun.verb_past`), facts in fields, `job_id` wherever there is one."""

import logging
import sys
from contextlib import suppress
from typing import TextIO

import structlog

from shared.settings import Settings

# Whose lines FARM_LOG_LEVEL counts for: the farm's own, and those of the servers that it is run by.
OWN = ("api", "deploy", "shared", "worker", "uvicorn.error")


def configure_logging(settings: Settings, **who: str) -> None:
    """Send structlog's and the standard library's records through one renderer. Every line carries the fields `who`."""
    level = getattr(logging, settings.log_level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        lambda _logger, _method, facts: {**facts, **who},
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = _Steady(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # uvicorn sets up its own before it loads the app; its lines are to look like all others, but its list of requests has their
    # query strings: `FARM_ACCESS_LOG` is the farm's own.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries tell of every message and request, with URLs and headers: of them only warnings are wanted.
    root.setLevel(max(level, logging.WARNING))
    for name in OWN:
        logging.getLogger(name).setLevel(level)


class _Steady(logging.StreamHandler[TextIO]):
    """Stream handler that survives a full disk: the process goes on and says once on stderr that logs are lost."""

    _is_stuck = False

    def flush(self) -> None:
        super().flush()
        self._is_stuck = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name in the standard library
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._is_stuck:
            self._is_stuck = True
            with suppress(OSError):
                sys.stderr.write(
                    f"farm: logs are lost ({error.strerror}): make room where stdout goes; the process goes on\n"
                )
                sys.stderr.flush()
