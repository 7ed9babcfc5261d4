"""OpenTelemetry: one trace per job, from submission to last webhook. The trace id is the job id, so no message carries it.

Without the extra `otel` or without OTEL_EXPORTER_OTLP_ENDPOINT these functions do nothing.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

log = structlog.get_logger(__name__)

Fact = str | int | float | bool

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_SPAN_ID_BITS = 64

_tracer: "Tracer | None" = None
# The job whose first span is being made; that one's ids are derived, all others are drawn.
_root: ContextVar[UUID | None] = ContextVar("root", default=None)


def configure_tracing(process: str, exporter: "SpanExporter | None" = None) -> None:
    """Start tracing this process, to `exporter` or else to OTEL_EXPORTER_OTLP_ENDPOINT; without either do nothing."""
    global _tracer
    if exporter is None and not os.environ.get(ENDPOINT):
        return
    if not (importlib.util.find_spec("opentelemetry") and importlib.util.find_spec("opentelemetry.sdk")):
        log.warning("tracing.not_installed", fix=f"install renderfarm[otel], or unset {ENDPOINT}")
        return
    _tracer = _tracer_of(process, exporter)


def submitted(job_id: UUID, *, began_ns: int, **facts: Fact) -> None:
    """Record the root span of a job: the request that submitted it, since `began_ns` of the Unix clock."""
    if _tracer is None:
        return
    from opentelemetry.context import Context

    token = _root.set(job_id)
    try:
        _tracer.start_span(
            "job.submit", Context(), start_time=began_ns, attributes={"job_id": str(job_id), **facts}
        ).end()
    finally:
        _root.reset(token)


@contextmanager
def job_span(name: str, job_id: UUID, **facts: Fact) -> Iterator[None]:
    """Record the block as a span below the job's root span."""
    if _tracer is None:
        yield
        return
    attributes = {"job_id": str(job_id), **facts}
    with _tracer.start_as_current_span(name, context=_below(job_id), attributes=attributes):
        yield


@contextmanager
def span(name: str, **facts: Fact) -> Iterator[None]:
    """Record the block as a span below this thread's current span."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, attributes=facts):
        yield


def _below(job_id: UUID) -> "Context":
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    first = SpanContext(job_id.int, _first_span_id(job_id), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(first))


def _first_span_id(job_id: UUID) -> int:
    # The half of a UUID that is random but for two bits, one of which is set: never zero.
    return job_id.int & ((1 << _SPAN_ID_BITS) - 1)


def _tracer_of(process: str, exporter: "SpanExporter | None") -> "Tracer":
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

    class JobIds(IdGenerator):
        """Ids for all spans; a job's first span has the job's."""

        _drawn = RandomIdGenerator()

        def generate_trace_id(self) -> int:
            job_id = _root.get()
            return job_id.int if job_id else self._drawn.generate_trace_id()

        def generate_span_id(self) -> int:
            job_id = _root.get()
            return _first_span_id(job_id) if job_id else self._drawn.generate_span_id()

    provider = TracerProvider(resource=Resource.create({"service.name": f"farm-{process}"}), id_generator=JobIds())
    provider.add_span_processor(SimpleSpanProcessor(exporter) if exporter else BatchSpanProcessor(_otlp()))
    return provider.get_tracer("farm")


def _otlp() -> Any:
    # Where to, with which headers and how long to try: the environment variables that OpenTelemetry has for it.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
