"""What the farm says of its queue, its workers and a job's outlook, on the real database."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from api.main import create_app
from shared.errors import InvalidRequest, OutOfMemory
from shared.fleet import holdings, registry
from shared.fleet.holdings import Holding, Tier
from shared.infra.db import Database
from shared.jobs import lifecycle
from shared.jobs.lifecycle import MAX_RETRY_S
from shared.settings import Settings
from tests.support.answers import problem
from tests.support.factories import DEMO, hires, params
from tests.support.jobs import claimed, row, submit, submit_many

COST = params().cost
WORKER = "gpu0@test"


@pytest.fixture(scope="module")
def front(engines: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(engines)) as client:
        yield client


@pytest.fixture
def client(front: TestClient, announced: str) -> TestClient:
    assert announced == DEMO
    return front


def measured(db: Database, speed: float) -> None:
    with db.transaction() as session:
        registry.beat(session, "gpu0@test", speed=speed, tick_s=0.5, batch_fill=2.5)


def test_an_idle_farm_has_an_empty_queue(client: TestClient) -> None:
    queue = client.get("/v1/queue").json()
    (only,) = queue["checkpoints"]
    assert (queue["queued"], queue["running"]) == (0, 0)
    assert (only["checkpoint"], only["workers"], only["slots"], only["oldest_queued_at"]) == (DEMO, 1, 4, None)
    assert (only["predicted_wait_s"], only["backlog_s"]) == (None, None)  # nothing was measured yet


def test_depth_wait_and_backlog_follow_what_was_measured(client: TestClient, db: Database) -> None:
    submit_many(db, 10)
    for _ in range(4):
        claimed(db, WORKER)
    measured(db, speed=COST / 2)  # two seconds a job
    (only,) = client.get("/v1/queue").json()["checkpoints"]
    assert (only["queued"], only["running"]) == (6, 4)
    assert only["oldest_queued_at"] is not None
    assert only["predicted_wait_s"] == pytest.approx(7 * 2)  # ten in front, of which seven must leave
    assert only["backlog_s"] == pytest.approx(10 * 2)


def test_a_queued_job_knows_its_place_and_a_running_one_its_end(client: TestClient, db: Database) -> None:
    ids = submit_many(db, 8)
    for _ in range(4):
        claimed(db, WORKER)
    measured(db, speed=COST)
    outlooks = [client.get(f"/v1/jobs/{job_id}").json()["outlook"] for job_id in ids]
    assert [one["position"] for one in outlooks] == [None] * 4 + [0, 1, 2, 3]
    assert [one["reason"] for one in outlooks] == [None] * 4 + ["waits_its_turn"] * 4
    assert [one["start_s"] for one in outlooks] == [0, 0, 0, 0, 1, 2, 3, 4]
    assert [one["finish_s"] for one in outlooks] == [4, 4, 4, 4, 5, 6, 7, 8]


def test_a_running_jobs_end_comes_nearer_with_every_step(client: TestClient, db: Database) -> None:
    job_id = submit(db)
    taken = claimed(db, WORKER)
    measured(db, speed=COST)
    with db.transaction() as session:
        lifecycle.heartbeat(session, [lifecycle.Beat(taken.job_id, taken.attempt, steps_done=3)], lease_s=20)
    assert client.get(f"/v1/jobs/{job_id}").json()["outlook"]["finish_s"] == pytest.approx(0.2, abs=0.1)


def test_a_job_that_nobody_serves_says_so(client: TestClient, db: Database) -> None:
    job_id = submit(db)
    with db.transaction() as session:
        registry.retire(session, "gpu0@test")
    outlook = client.get(f"/v1/jobs/{job_id}").json()["outlook"]
    assert outlook == {
        "position": 0,
        "reason": "no_worker_serves_its_checkpoint",
        "start_s": None,
        "finish_s": None,
    }


def in_library(db: Database, *held: Holding, worker: str = WORKER) -> None:
    with db.transaction() as session:
        holdings.hold(session, worker, held)


def test_a_job_says_that_its_checkpoint_must_be_loaded_first(client: TestClient, db: Database) -> None:
    """With a start that counts the loading; a worker that is busy turns to it before long."""
    in_library(db, Holding("second", 1, Tier.RAM, 0.5), Holding("third", 1, Tier.DISK, 6.0))
    measured(db, speed=COST)
    job_id = submit(db, checkpoint="second")
    path = f"/v1/jobs/{job_id}"
    idle = client.get(path).json()["outlook"]
    assert (idle["reason"], idle["start_s"]) == ("waits_for_a_worker_to_change_checkpoints", 0.5)
    assert idle["finish_s"] == 1.5
    submit(db)
    claimed(db, WORKER)
    busy = client.get(path).json()["outlook"]
    assert (busy["reason"], 0.5 <= busy["start_s"] <= 5.5) == ("waits_for_a_worker_to_change_checkpoints", True)
    with db.transaction() as session:
        assert holdings.intend(session, WORKER, "second", silent_after_s=60)
    loading = client.get(path).json()["outlook"]
    assert (loading["reason"], loading["start_s"]) == ("its_checkpoint_is_being_loaded", 0.5)
    queue = {one["checkpoint"]: one for one in client.get("/v1/queue").json()["checkpoints"]}
    assert (queue["second"]["workers"], queue["second"]["resident_workers"], queue["second"]["loading_workers"]) == (
        1,
        0,
        1,
    )
    assert queue["second"]["backlog_s"] == 1.5
    assert queue["third"]["backlog_s"] == 0  # what has no work is not loaded
    with db.transaction() as session:
        holdings.turned(session, WORKER, "second")
    open_now = client.get(path).json()["outlook"]  # beside the job of the first, which still runs
    assert (open_now["reason"], open_now["start_s"], open_now["finish_s"]) == ("waits_its_turn", 0, 2.0)


def test_checkpoints_are_listed_with_where_they_are(client: TestClient, db: Database) -> None:
    sha256 = "5" * 64
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu1@test", checkpoint="warm", size_bytes=7, hostname="test", device="test", slots=2
        )
        holdings.hold(session, "gpu1@test", [Holding("cold", 8, Tier.BUCKET, 90.0)])
    broken = Holding("broken", 9, Tier.DISK, 4.0, refused="/srv/secret place/broken.safetensors: truncated.")
    in_library(db, Holding("warm", 7, Tier.RAM, 0.25, sha256), Holding("cold", 8, Tier.DISK, 3.0), broken)
    submit_many(db, 2, checkpoint="cold")
    told = client.get("/v1/checkpoints").json()
    listed = {one["name"]: one for one in told["checkpoints"]}
    assert [*listed] == ["broken", "cold", DEMO, "warm"]
    assert told["default"] is None
    facts = ("ready_workers", "slots", "resident_workers", "warm_workers", "price_s", "queued", "refused")
    assert [listed["cold"][name] for name in facts] == [2, 6, 0, 0, 3.0, 2, None]
    assert [listed["warm"][name] for name in facts] == [2, 6, 1, 1, 0, 0, None]
    assert [listed[DEMO][name] for name in facts] == [1, 4, 1, 0, 0, 0, None]  # a library that is not announced
    assert [listed["broken"][name] for name in facts] == [0, 0, 0, 0, None, 0, "broken.safetensors: truncated."]
    assert (listed["warm"]["size_bytes"], listed["warm"]["sha256"], listed["cold"]["sha256"]) == (7, sha256, None)
    first, second = client.get("/v1/workers").json()["workers"]
    assert (first["checkpoint"], first["warm"], first["library"], first["refused"]) == (DEMO, ["warm"], 3, 1)
    assert (second["checkpoint"], second["warm"], second["library"], second["swaps"]) == ("warm", [], 2, 0)
    # What was resident is still near, before its worker says so.
    with db.transaction() as session:
        holdings.turned(session, WORKER, "cold")
    first, _ = client.get("/v1/workers").json()["workers"]
    assert (first["checkpoint"], first["swaps"], first["intends"]) == ("cold", 1, None)


def test_a_checkpoint_that_nobody_can_load_is_refused_with_the_reason(client: TestClient, db: Database) -> None:
    in_library(db, Holding("broken", 9, Tier.DISK, 4.0, refused="broken.safetensors: truncated."))
    refused = problem(client.post("/v1/jobs", json={"prompt": "x", "checkpoint": "broken"}), 422, "checkpoint_refused")
    assert refused["detail"] == "No worker can load the checkpoint 'broken': broken.safetensors: truncated."
    # With one that loads beside it, that is the only choice.
    assert client.get("/v1/checkpoints").json()["default"] == DEMO
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu1@test", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=2
        )
        holdings.hold(session, "gpu1@test", [Holding("broken", 9, Tier.DISK, 4.0)])
        registry.drain(session, "gpu1@test", is_draining=True)
    # The other one has it whole, and will come back.
    assert client.post("/v1/jobs", json={"prompt": "x", "checkpoint": "broken"}).status_code == 202


def test_the_outlook_of_two_checkpoints_is_that_of_workers_that_have_both(client: TestClient, db: Database) -> None:
    """It ends later by the price of the second; while nobody has both it waits for a worker."""
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu1@test", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=2
        )
        registry.beat(session, "gpu1@test", speed=COST / 100, tick_s=1, batch_fill=1)
    measured(db, speed=COST)
    job_id = submit(db, hires=hires(checkpoint="second"))
    path, seconds = f"/v1/jobs/{job_id}", row(db, job_id).cost / COST
    lacking = client.get(path).json()["outlook"]
    assert (lacking["reason"], lacking["start_s"]) == ("no_worker_serves_its_checkpoint", None)
    in_library(db, Holding("second", 1, Tier.DISK, 6.0))
    queued = client.get(path).json()["outlook"]
    assert (queued["reason"], queued["start_s"]) == ("waits_its_turn", 0)
    assert queued["finish_s"] == pytest.approx(6 + seconds, abs=0.1)  # without the slow worker, which lacks it
    claimed(db, WORKER)
    assert client.get(path).json()["outlook"]["finish_s"] == pytest.approx(6 + seconds, abs=0.1)
    in_library(db, Holding("second", 1, Tier.RAM, 0.5))
    assert client.get(path).json()["outlook"]["finish_s"] == pytest.approx(0.5 + seconds, abs=0.1)


def two_passes(client: TestClient, second: str) -> Any:
    return client.post("/v1/jobs", json={"prompt": "x", "checkpoint": DEMO, "hires": {"checkpoint": second}})


def test_the_checkpoint_of_a_second_pass_is_found_or_refused_as_the_jobs_own(client: TestClient, db: Database) -> None:
    broken = Holding("broken", 9, Tier.DISK, 4.0, refused="broken.safetensors: truncated.")
    in_library(db, Holding("second", 7, Tier.DISK, 4.0), broken)
    made = two_passes(client, "second")
    assert (made.status_code, made.json()["params"]["hires"]["checkpoint"]) == (202, "second")
    assert two_passes(client, DEMO).json()["params"]["hires"]["checkpoint"] is None
    refused = problem(two_passes(client, "broken"), 422, "checkpoint_refused")
    assert refused["detail"] == "No worker can load the checkpoint 'broken': broken.safetensors: truncated."
    unknown = problem(two_passes(client, "secund"), 422, "unknown_checkpoint")
    assert unknown["detail"] == "No checkpoint is named 'secund'. Known: second."


def test_two_passes_that_no_worker_can_both_render_are_refused(client: TestClient, db: Database) -> None:
    elsewhere = Holding("elsewhere", 9, Tier.DISK, 4.0)
    with db.transaction() as session:
        registry.announce(
            session,
            worker_id="gpu1@test",
            checkpoint="elsewhere",
            size_bytes=1,
            hostname="test",
            device="test",
            slots=2,
        )
    refused = problem(two_passes(client, "elsewhere"), 422, "checkpoint_refused")["detail"]
    assert refused.startswith(
        f"No worker can load both '{DEMO}' and 'elsewhere', which the two passes of the job need."
    )
    in_library(db, elsewhere)
    assert two_passes(client, "elsewhere").status_code == 202
    with db.transaction() as session:
        for worker in (WORKER, "gpu1@test"):
            registry.retire(session, worker)
    assert two_passes(client, "elsewhere").status_code == 202  # it waits


def test_of_several_checkpoints_one_must_be_named(client: TestClient, db: Database) -> None:
    in_library(db, *(Holding(f"c{number:02}", 1, Tier.DISK, 1.0) for number in range(30)))
    # First, since the only checkpoint of a second ago may be given by default.
    unknown = problem(client.post("/v1/jobs", json={"prompt": "x", "checkpoint": "c12x"}), 422, "unknown_checkpoint")
    assert "c12" in unknown["detail"]
    assert "c29" not in unknown["detail"]
    several = problem(client.post("/v1/jobs", json={"prompt": "x"}), 422, "invalid_request")["detail"]
    assert "FARM_DEFAULT_CHECKPOINT" in several
    assert "c19, and 11 more" in several


def test_a_draining_worker_is_not_counted_on(client: TestClient, db: Database) -> None:
    job_id = submit(db)
    measured(db, speed=COST)
    with db.transaction() as session:
        registry.drain(session, "gpu0@test", is_draining=True)
    outlook = client.get(f"/v1/jobs/{job_id}").json()["outlook"]
    assert (outlook["reason"], outlook["start_s"]) == ("all_its_workers_are_draining", None)
    (queue,) = client.get("/v1/queue").json()["checkpoints"]
    assert (queue["workers"], queue["slots"], queue["predicted_wait_s"]) == (0, 0, None)
    (served,) = client.get("/v1/checkpoints").json()["checkpoints"]
    assert (served["ready_workers"], served["slots"]) == (0, 0)
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu1@test", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=2
        )
        registry.beat(session, "gpu1@test", speed=COST * 2)
    (queue,) = client.get("/v1/queue").json()["checkpoints"]
    assert (queue["workers"], queue["slots"], queue["backlog_s"]) == (1, 2, 0.5)


def test_a_job_that_is_tried_again_later_says_so(client: TestClient, db: Database) -> None:
    job_id = submit(db)
    taken = claimed(db, WORKER)
    measured(db, speed=COST)
    with db.transaction() as session:
        lifecycle.fail(session, taken, OutOfMemory(), retry_s=600)
    outlook = client.get(f"/v1/jobs/{job_id}").json()["outlook"]
    assert outlook["reason"] == "waits_to_be_tried_again"
    # Drawn between half and all of the longest wait; what passed since then is this test's own time.
    assert MAX_RETRY_S / 2 - 120 < outlook["start_s"] <= MAX_RETRY_S


def test_a_job_that_has_ended_has_no_outlook(client: TestClient, db: Database) -> None:
    job_id = submit(db)
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert client.get(f"/v1/jobs/{job_id}").json()["outlook"] is None


def test_workers_are_listed_with_what_they_do(client: TestClient, db: Database) -> None:
    submit_many(db, 3)
    for _ in range(3):
        claimed(db, WORKER)
    measured(db, speed=1000.0)
    (worker,) = client.get("/v1/workers").json()["workers"]
    assert (worker["id"], worker["checkpoint"], worker["slots"], worker["running"]) == ("gpu0@test", DEMO, 4, 3)
    assert (worker["speed"], worker["tick_s"], worker["batch_fill"]) == (1000.0, 0.5, 2.5)
    assert worker["is_alive"]


def test_the_last_hour_is_told_minute_by_minute(client: TestClient, db: Database) -> None:
    submit_many(db, 5)
    good, many, bad, old, _running = [claimed(db, WORKER) for _ in range(5)]
    with db.transaction() as session:
        for run in (good, many, old):
            lifecycle.succeed(session, run, [])
        lifecycle.fail(session, bad, InvalidRequest("no"))
        now = session.execute(text("SELECT date_trunc('minute', now())")).scalar_one()
        for run, minutes_ago, images in ((good, 3, 1), (many, 3, 4), (bad, 59, 1), (old, 60, 1)):
            ended = now - timedelta(minutes=minutes_ago) + timedelta(seconds=30)
            session.execute(
                text(
                    "UPDATE jobs SET finished_at = :ended, started_at = CAST(:ended AS timestamptz) - interval '10 s',"
                    " created_at = CAST(:ended AS timestamptz) - interval '14 s',"
                    " params = jsonb_set(params, '{num_images}', to_jsonb(CAST(:images AS int))) WHERE id = :id"
                ),
                {"ended": ended, "id": run.job_id, "images": images},
            )
    told = client.get("/v1/throughput").json()
    assert told["since"] == (now - timedelta(minutes=59)).isoformat().replace("+00:00", "Z")
    (only,) = told["checkpoints"]
    assert only["checkpoint"] == DEMO
    assert (only["pictures"][56], only["succeeded"][56], only["wait_s"][56]) == (5, 2, 4.0)
    assert (sum(only["pictures"]), sum(only["succeeded"])) == (5, 2)
    assert (only["failed"][0], sum(only["failed"])) == (1, 1)
    assert {len(only[name]) for name in ("pictures", "succeeded", "failed", "wait_s")} == {told["minutes"]} == {60}
    assert [at for at, wait in enumerate(only["wait_s"]) if wait is not None] == [56]
