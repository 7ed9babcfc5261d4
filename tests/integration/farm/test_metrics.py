"""What Prometheus is told, from the real database: what waits, what runs, what is wanted and who would be missed least."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from urllib.request import urlopen

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families as parsed
from pydantic import SecretStr
from sqlalchemy import func, update

from api.main import create_app
from deploy.standalone import ports
from shared.fleet import holdings, registry, weights_bucket
from shared.fleet.holdings import Holding, Tier
from shared.fleet.weights_bucket import BucketFile
from shared.infra.db import Database
from shared.infra.metrics import Board, PortTaken
from shared.infra.storage import Storage
from shared.infra.tables import CheckpointRow, DeliveryRow, EndpointRow, JobRow
from shared.jobs import lifecycle
from shared.jobs.outbox import ENDINGS
from shared.settings import Settings
from shared.webhooks import endpoints
from tests.support.answers import problem
from tests.support.factories import DEMO, params
from tests.support.fleet import enlist, hold
from tests.support.headers import SD15, write
from tests.support.jobs import submit, submit_many
from tests.support.metrics import METRICS
from worker.courier import maintenance
from worker.engine.pace import Pace
from worker.metrics import WorkerMetrics

SECRET = "whsec_" + "c2VjcmV0" * 5


@pytest.fixture
def http(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


def values(text: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parsed(text)
        for sample in family.samples
    }


@pytest.mark.usefixtures("announced")
def test_the_load_of_the_farm_is_shown(http: TestClient, db: Database) -> None:
    submit_many(db, 5)
    cost = params().cost
    with db.transaction() as session:
        registry.beat(session, "gpu0@test", speed=cost / 100)
        registry.announce(
            session, worker_id="gpu1@test", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=4
        )
        claim = lifecycle.claim_next(session, DEMO, "gpu1@test", lease_s=20)
        assert claim is not None
        half = params().unet_calls // 2
        lifecycle.heartbeat(session, [lifecycle.Beat(claim.job_id, claim.attempt, half)], lease_s=20)
        session.execute(update(JobRow).values(created_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 7)))
    now = values(http.get("/metrics").text)
    left_s = (4 + 1 - half / params().unet_calls) * 100
    assert now["farm_database_up",] == 1
    assert now["farm_queue_depth", DEMO] == 4
    assert now["farm_queue_oldest_seconds", DEMO] >= 7
    assert (now["farm_jobs_running", DEMO], now["farm_workers", DEMO], now["farm_fleet_workers",]) == (1, 2, 2)
    assert now["farm_backlog_gpu_seconds", DEMO] == pytest.approx(left_s)
    assert now["farm_desired_workers",] == now["farm_checkpoint_desired_workers", DEMO] == -(-left_s // 60)
    assert now["farm_worker_scale_in_cost", "gpu0@test"] == 0
    assert now["farm_worker_scale_in_cost", "gpu1@test"] == pytest.approx(100 * half / params().unet_calls)


@pytest.mark.usefixtures("announced")
def test_one_number_counts_the_work_of_all_checkpoints(http: TestClient, db: Database) -> None:
    """Many checkpoints with a job each are no reason for as many workers; jobs that nobody can render want one."""
    cost = params().cost
    names = [f"c{number}" for number in range(20)]
    with db.transaction() as session:
        registry.beat(session, "gpu0@test", speed=cost / 10)
        library = [Holding(name, 1, Tier.RAM, 0.1) for name in names]
        broken = Holding("broken", 1, Tier.DISK, 9.0, refused="broken.safetensors: truncated.")
        holdings.hold(session, "gpu0@test", [*library, broken])
    for name in names:
        submit(db, checkpoint=name)
    now = values(http.get("/metrics").text)
    assert now["farm_desired_workers",] == math.ceil(len(names) * 10 / 60)
    assert now["farm_checkpoint_desired_workers", "c7"] == 1
    assert (now["farm_workers", "c7"], now["farm_resident_workers", "c7"], now["farm_resident_workers", DEMO]) == (
        1,
        0,
        1,
    )
    assert ("farm_queue_depth", "broken") not in now
    with db.transaction() as session:
        registry.retire(session, "gpu0@test")
    assert values(http.get("/metrics").text)["farm_desired_workers",] == 1  # from zero
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu1@test", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=4
        )
        registry.beat(session, "gpu1@test", speed=cost / 1000)
    assert values(http.get("/metrics").text)["farm_desired_workers",] == 1  # more of these would not help


def test_many_checkpoints_of_the_bucket_want_workers_from_zero_and_back_to_it(http: TestClient, db: Database) -> None:
    cost, names = params().cost, [f"c{number}" for number in range(4)]

    def wanted() -> float:
        return values(http.get("/metrics").text)["farm_desired_workers",]

    def come(worker: str) -> None:
        enlist(db, worker)
        with db.transaction() as session:
            registry.beat(session, worker, speed=cost / 60)
            holdings.hold(session, worker, [Holding(name, 1, Tier.BUCKET, 30.0) for name in names])

    def go(worker: str) -> None:
        with db.transaction() as session:
            registry.retire(session, worker)

    come("gpu0@test")
    assert wanted() == 0
    go("gpu0@test")
    assert wanted() == 0
    for name in names:
        submit(db, checkpoint=name)
    assert wanted() == 1
    come("gpu1@test")
    now = values(http.get("/metrics").text)
    assert [now["farm_resident_workers", name] for name in names] == [0, 0, 0, 0]
    assert now["farm_desired_workers",] == 4
    for left, name in zip((3, 2, 1, 0), names, strict=True):
        with db.transaction() as session:
            claim = lifecycle.claim_next(session, name, "gpu1@test", lease_s=20)
            assert claim
            assert lifecycle.succeed(session, claim, [])
        assert wanted() == left
    go("gpu1@test")
    assert wanted() == 0


def test_a_farm_that_never_had_a_worker_starts_from_its_bucket(
    http: TestClient, db: Database, storage: Storage, tmp_path: Path
) -> None:
    path = write(tmp_path / "fresh.safetensors", SD15)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    file = BucketFile("checkpoint", "fresh", sha256, path.stat().st_size, datetime.now(UTC))
    job = {"prompt": "x", "checkpoint": "fresh"}
    assert http.post("/v1/jobs", json=job).json()["code"] == "unknown_checkpoint"
    weights_bucket.push(storage, file, path, b"", lambda _count: None)
    try:
        maintenance.take_stock(db, storage)
    finally:
        weights_bucket.remove(storage, "checkpoint", "fresh")
    (known,) = http.get("/v1/checkpoints").json()["checkpoints"]
    assert (known["name"], known["sha256"], known["ready_workers"]) == ("fresh", sha256, 0)
    assert values(http.get("/metrics").text)["farm_desired_workers",] == 0
    assert http.post("/v1/jobs", json=job).status_code == 202
    assert values(http.get("/metrics").text)["farm_desired_workers",] == 1


def test_what_a_worker_has_told_of_a_name_stands(db: Database) -> None:
    hold(db, "gpu", DEMO)
    with db.transaction() as session:
        holdings.stock(session, [BucketFile("checkpoint", DEMO, "0" * 64, 1, datetime.now(UTC))])
        assert session.get_one(CheckpointRow, DEMO).sha256 is None


@pytest.mark.usefixtures("announced")
def test_what_is_known_of_gpus_is_shown_and_the_unfit_are_counted(http: TestClient, db: Database) -> None:
    with db.transaction() as session:
        registry.beat(session, "gpu0@test", vitals={"temperature_c": 71.0, "ecc_errors": 0, "xid": None})
        registry.announce(
            session, worker_id="gpu1@test", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=4
        )
        assert values(http.get("/metrics").text)["farm_workers_unfit",] == 0
        registry.mark_unfit(session, "gpu1@test", "The canary is 61.0 levels off.")
    now = values(http.get("/metrics").text)
    assert now["farm_workers_unfit",] == 1
    assert now["farm_gpu_temperature_celsius", "gpu0@test"] == 71
    assert now["farm_gpu_ecc_errors", "gpu0@test"] == 0
    assert ("farm_gpu_xid", "gpu0@test") not in now
    assert ("farm_gpu_temperature_celsius", "gpu1@test") not in now


def test_nothing_that_clients_write_becomes_a_label(http: TestClient) -> None:
    """However much of it there is, Prometheus has no more series to keep."""

    def ask(word: str) -> set[tuple[str, ...]]:
        for path in (f"/{word}", f"/v1/jobs/{word}", f"/v1/jobs?state={word}", f"/sdapi/v1/{word}"):
            http.get(path, headers={"User-Agent": word, "X-Request-Id": word})
        http.request(word, "/v1/jobs")
        http.post("/v1/jobs", json={"prompt": word, "checkpoint": word, "sampler": word})
        return set(values(http.get("/metrics").text))

    ask("strange0")
    known = ask("strange1")  # by now the scrape before is counted, too
    for number in range(2, 6):
        assert ask(f"strange{number}") == known
    assert not [key for key in known if "strange" in " ".join(key)]


def test_every_label_takes_its_values_from_the_operators_side() -> None:
    """A further label wants a look at who chooses its values; then it belongs here."""
    bounded = {"checkpoint", "worker", "method", "route", "status", "outcome", "code", "kind", "state", "tier"}
    assert {label for metric in METRICS.values() for label in metric.labels} == bounded


def test_webhooks_that_are_late_are_counted_unless_their_receiver_is_waited_for(http: TestClient, db: Database) -> None:
    with db.transaction() as session:
        endpoint = endpoints.register(
            session, owner="o", url="https://example.com/a", events=ENDINGS, secret=SECRET, allow_private=True
        )
        lifecycle.cancel(session, lifecycle.submit(session, params(), max_attempts=1, owner="o").id)
        session.execute(update(DeliveryRow).values(next_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 30)))
    now = values(http.get("/metrics").text)
    assert now["farm_webhooks_overdue",] == 1
    assert now["farm_webhook_lag_seconds",] >= 30
    with db.transaction() as session:
        hold = func.now() + func.make_interval(0, 0, 0, 1)
        session.execute(update(EndpointRow).where(EndpointRow.id == endpoint.id).values(hold_until=hold))
    assert values(http.get("/metrics").text)["farm_webhooks_overdue",] == 0


def test_routes_are_counted_by_pattern_and_strangers_together(http: TestClient) -> None:
    for path in ("/v1/jobs/1", "/v1/jobs/2", "/nothing/here", "/nothing/there"):
        http.get(path)
    http.request("BREW", "/v1/jobs/1")
    now = values(http.get("/metrics").text)
    assert now["farm_http_request_seconds_count", "GET", "/v1/jobs/{job_id}", "404"] == 2
    assert now["farm_http_request_seconds_count", "GET", "unmatched", "404"] == 2
    assert {key[1] for key in now if key[0] == "farm_http_request_seconds_count"} == {"GET", "other"}


def test_a_scrape_without_a_database_says_so(settings: Settings) -> None:
    nowhere = SecretStr(f"postgresql://u:p@127.0.0.1:{ports.pick('127.0.0.1')}/none")
    with TestClient(create_app(settings.model_copy(update={"database_url": nowhere}))) as http:
        answer = http.get("/metrics")
        assert answer.status_code == HTTPStatus.OK
        now = values(answer.text)
    assert now["farm_database_up",] == 0
    assert ("farm_queue_depth", DEMO) not in now


def test_a_worker_answers_on_its_own_port() -> None:
    pace = Pace(ticks=3, busy_s=1.5, cost=600, image_steps=6)
    meters = WorkerMetrics(
        pace=lambda: pace,
        running=lambda: [1, 2],
        memory=lambda: {"free": 1.0, "total": 4.0},
        swaps=lambda: {Tier.RAM: (5, 0.75), Tier.DISK: (1, 2.0)},
        damaged=lambda: {Tier.RAM: 1},
        resident=lambda: DEMO,
    )
    meters.ended(DEMO, "succeeded", images=4)
    meters.ended("other", "failed", code="not_a_number")
    port = ports.pick("127.0.0.1")
    stop = meters.board.serve(port)
    try:
        with closing(urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60)) as answer:
            now = values(answer.read().decode())
        with pytest.raises(PortTaken, match="FARM_METRICS_PORT"):
            Board().serve(port)
    finally:
        stop()
    assert now["farm_engine_ticks_total",] == 3
    assert now["farm_engine_busy_seconds_total",] == 1.5
    assert now["farm_engine_image_steps_total",] == 6
    assert now["farm_jobs_in_flight",] == 2
    assert now["farm_device_memory_bytes", "free"] == 1
    assert now["farm_images_total", DEMO] == 4
    assert now["farm_attempts_ended_total", "other", "not_a_number", "failed"] == 1
    assert (now["farm_swaps_total", "ram"], now["farm_swap_seconds_total", "disk"]) == (5, 2.0)
    assert [now["farm_weights_damaged_total", tier] for tier in ("vram", "ram", "disk")] == [0, 1, 0]
    assert now["farm_resident_checkpoint", DEMO] == 1


def test_every_declared_name_is_well_formed() -> None:
    for name, metric in METRICS.items():
        assert name.startswith("farm_")
        assert name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")


def test_metrics_may_need_a_key(settings: Settings) -> None:
    key = "prometheus-" + "k" * 16
    with TestClient(create_app(settings.model_copy(update={"metrics_key": SecretStr(key)}))) as http:
        for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {key}"}):
            problem(http.get("/metrics", headers=wrong), 401, "unauthenticated")
        assert values(http.get("/metrics", headers={"Authorization": f"Bearer {key}"}).text)["farm_database_up",] == 1


@pytest.mark.usefixtures("announced")
def test_metrics_may_have_a_port_of_their_own(settings: Settings) -> None:
    port = ports.pick("127.0.0.1")
    with TestClient(create_app(settings.model_copy(update={"metrics_port": port}))) as http:
        problem(http.get("/metrics"), 404, "not_found")
        assert http.head("/internal/ping/").status_code == 200
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            now = values(answer.read().decode())
        assert now["farm_database_up",] == now["farm_workers", DEMO] == 1
        assert ("farm_http_request_seconds_count", "GET", "/metrics", "404") in now
        assert ("farm_http_request_seconds_count", "HEAD", "/internal/ping", "200") in now
    with pytest.raises(OSError, match="refused"):
        urlopen(f"http://127.0.0.1:{port}/metrics")
