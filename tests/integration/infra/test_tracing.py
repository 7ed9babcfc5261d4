"""One trace follows a job from its submission through the worker and the storage to its webhook, with no id handed on."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from celery import Celery
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis

from api.main import create_app
from shared.infra import tracing
from shared.infra.db import Database
from shared.infra.outbound_http import OutboundHttp
from shared.infra.storage import Storage
from shared.infra.tracing import configure_tracing, job_span, span, submitted
from shared.jobs.outbox import EventType
from shared.settings import Settings
from shared.webhooks import endpoints
from shared.webhooks.deliveries import Outcome
from tests.support import studio
from tests.support.factories import DEMO
from tests.support.receiver import receiving
from worker.courier.webhooks import Courier
from worker.engine.runner import DiffusionRunner
from worker.health.fitness import Unexamined
from worker.slots.attempts import Attempts
from worker.slots.claim_gate import ClaimGate
from worker.slots.guarded_engine import GuardedEngine
from worker.slots.image_store import ImageStore
from worker.slots.leases import Leases
from worker.slots.open_checkpoints import OpenCheckpoints
from worker.slots.render import Renderer
from worker.slots.snapshots import Snapshots

SECRET = "whsec_" + "c2VjcmV0" * 5
JOB = UUID("0198c0de-0000-7000-8000-000000000001")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    monkeypatch.setattr(tracing, "_tracer", None)
    exporter = InMemorySpanExporter()
    configure_tracing("test", exporter)
    yield exporter
    exporter.shutdown()


def named(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_jobs_spans_are_one_trace_though_nothing_is_handed_on(spans: InMemorySpanExporter) -> None:
    submitted(JOB, began_ns=1_000, checkpoint="c")
    with job_span("job.attempt", JOB, attempt=1), span("image.store", index=0):
        pass
    with job_span("webhook.deliver", JOB):
        pass
    found = named(spans)
    assert {one.context.trace_id for one in found.values() if one.context} == {JOB.int}
    first, attempt = found["job.submit"], found["job.attempt"]
    assert first.parent is None
    assert first.start_time == 1_000
    assert first.context is not None
    assert attempt.context is not None
    assert attempt.parent is not None
    assert attempt.parent.span_id == first.context.span_id
    assert found["image.store"].parent is not None
    assert found["image.store"].parent.span_id == attempt.context.span_id
    assert found["webhook.deliver"].attributes == {"job_id": str(JOB)}


def test_an_error_is_on_the_span_and_passes_on(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="no"), job_span("job.attempt", JOB):
        raise ValueError("no")
    assert not named(spans)["job.attempt"].status.is_ok


def test_without_an_endpoint_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_tracer", None)
    monkeypatch.delenv(tracing.ENDPOINT, raising=False)
    configure_tracing("test")
    submitted(JOB, began_ns=0)
    with job_span("job.attempt", JOB), span("image.store"):
        assert tracing._tracer is None


@pytest.mark.usefixtures("announced")
def test_a_real_job_is_followed_from_http_to_its_webhook(
    spans: InMemorySpanExporter, settings: Settings, db: Database, redis: Redis, celery: Celery
) -> None:
    with receiving() as receiver, TestClient(create_app(settings)) as http:
        with db.transaction() as session:
            endpoints.register(
                session,
                owner="anonymous",
                url=receiver.url,
                events=[EventType.SUCCEEDED],
                secret=SECRET,
                allow_private=True,
            )
        body = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2}
        job_id = UUID(http.post("/v1/jobs", json=body).json()["id"])
        with studio.running(DiffusionRunner.of(studio.demo())) as engine:
            Renderer(
                Attempts(db, redis, celery, settings, opened=OpenCheckpoints(DEMO), worker_id="w"),
                GuardedEngine(engine, Snapshots(db, settings), Unexamined()),
                ImageStore(Storage(settings), settings),
                Leases(db, settings, "w"),
                ClaimGate(16),
            ).answer()
        sent: list[Outcome] = []
        courier = Courier(db, OutboundHttp(allow_private=True), settings, sent=sent.append)
        assert courier.hand_out() == 1
        courier._pool.shutdown(wait=True)  # a stop takes back what has not begun
        courier.stop()
    assert [outcome.word for outcome in sent] == ["delivered"]
    found = named(spans)
    assert set(found) == {"job.submit", "job.attempt", "image.store", "webhook.deliver"}
    assert {one.context.trace_id for one in found.values() if one.context} == {job_id.int}
