"""What befalls jobs without anyone asking, on the real database: lost workers, poison, deadlines, late retries."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from math import ceil, log2
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import ColumnElement, func, select, update

from shared.errors import OutOfMemory
from shared.fleet import registry
from shared.infra.db import Database
from shared.infra.tables import JobRow
from shared.jobs import lifecycle, rescue
from shared.vocabulary.states import JobState
from tests.support.factories import DEMO
from tests.support.jobs import LEASE_S, claim, claimed, row, submit
from worker.courier import maintenance
from worker.slots.claim_gate import company


def age(db: Database, by_s: float, *columns: str, where: ColumnElement[bool] | None = None) -> None:
    """Let time pass for some columns of some rows."""
    moved = {name: getattr(JobRow, name) - timedelta(seconds=by_s) for name in columns}
    with db.transaction() as session:
        session.execute(update(JobRow).where(*([] if where is None else [where])).values(moved))


def rescued(db: Database) -> dict[UUID, JobState]:
    with db.transaction() as session:
        return dict(rescue.rescue_lost(session, lease_s=LEASE_S))


def die(db: Database, worker: str) -> dict[UUID, JobState]:
    """Let a worker go silent until its first lease has run out; the others were extended up to a heartbeat later."""
    age(db, LEASE_S - 5, "lease_until", where=JobRow.worker_id == worker)
    with db.transaction() as session:
        held = select(JobRow.id).where(JobRow.worker_id == worker, JobRow.state == JobState.RUNNING)
        first = session.execute(held.limit(1)).scalar_one()
    age(db, 5.1, "lease_until", where=JobRow.id == first)
    return rescued(db)


def test_companions_of_a_lost_worker_are_taken_back_together_and_are_not_at_fault(db: Database) -> None:
    ids = {submit(db) for _ in range(3)}
    for _ in ids:
        claimed(db)
    assert die(db, "w") == dict.fromkeys(ids, JobState.QUEUED)
    assert {(row(db, one).faults, row(db, one).losses, row(db, one).suspect) for one in ids} == {(0, 1, False)}
    assert [claimed(db).losses for _ in ids] == [1, 1, 1]
    die(db, "w")
    # A worker of a release that counts no losses runs a suspect alone.
    assert {(row(db, one).faults, row(db, one).losses, row(db, one).suspect) for one in ids} == {(0, 2, True)}


def test_a_job_that_was_alone_is_at_fault(db: Database) -> None:
    job_id = submit(db, max_attempts=2)
    claimed(db)
    assert die(db, "w") == {job_id: JobState.QUEUED}
    assert row(db, job_id).faults == 1
    claimed(db)
    assert die(db, "w") == {job_id: JobState.FAILED}
    assert row(db, job_id).error_code == "worker_lost"


def test_workers_are_judged_one_by_one(db: Database) -> None:
    ids = [submit(db) for _ in range(3)]
    for worker in ("a", "b", "b"):
        claimed(db, worker)
    age(db, LEASE_S + 1, "lease_until")
    rescued(db)
    assert [row(db, one).faults for one in ids] == [1, 0, 0]


@pytest.mark.usefixtures("announced")
def test_a_living_workers_other_jobs_are_left_alone(db: Database) -> None:
    """Its claim may have been committed while the answer was lost: such a job goes back, and is nobody's fault."""
    unknown, known = submit(db), submit(db)
    for _ in range(2):
        claimed(db, "gpu0@test")
    age(db, LEASE_S + 1, "lease_until", where=JobRow.id == unknown)
    age(db, LEASE_S - 9, "lease_until", where=JobRow.id == known)
    assert rescued(db) == {unknown: JobState.QUEUED}
    assert (row(db, unknown).faults, row(db, unknown).losses) == (0, 0)


def test_a_worker_takes_back_what_its_former_process_held(db: Database) -> None:
    mine, other = submit(db), submit(db)
    claimed(db, "w")
    claimed(db, "v")
    with db.transaction() as session:
        assert rescue.take_over(session, "w") == [(mine, JobState.QUEUED)]
    assert row(db, other).state == JobState.RUNNING


def test_couriers_do_not_split_a_lost_worker_between_them(db: Database) -> None:
    ids = {submit(db) for _ in range(6)}
    for _ in ids:
        claimed(db)
    age(db, LEASE_S + 1, "lease_until")
    with ThreadPoolExecutor(4) as pool:
        found = [moved for moved in pool.map(lambda _: rescued(db), range(4)) if moved]
    assert found == [dict.fromkeys(ids, JobState.QUEUED)]
    assert {row(db, one).faults for one in ids} == {0}


@pytest.mark.parametrize("seed", range(6))
def test_poison_fails_and_nobody_else_pays(db: Database, seed: int) -> None:
    """Many jobs, some of them poison, on a worker that also dies by itself while it runs more than one job."""
    rng = random.Random(seed)
    slots, max_attempts = rng.randint(2, 4), rng.randint(1, 3)
    ids = [submit(db, max_attempts=max_attempts) for _ in range(rng.randint(6, 12))]
    befall(db, set(rng.sample(ids, rng.randint(1, 3))), slots, max_attempts, dies=lambda: rng.random() < 0.1)


def test_fifteen_good_jobs_survive_the_poison_beside_them(db: Database) -> None:
    ids = [submit(db, max_attempts=2) for _ in range(16)]
    befall(db, {ids[7]}, slots=16, max_attempts=2)


def befall(
    db: Database, poison: set[UUID], slots: int, max_attempts: int, dies: Callable[[], bool] = lambda: False
) -> None:
    """Run all that is queued on a worker that poison kills: poison fails, everything else succeeds, in few attempts."""
    in_company = 1 + ceil(log2(slots))
    deaths: Counter[UUID] = Counter()
    while running := filled(db, slots):
        # The last one may have to wait for the others to end.
        companions = running[:-1] if len(running) > company(running[-1].losses, slots) else running
        while running:
            if poison & {one.job_id for one in companions} or (len(running) > 1 and dies()):
                deaths.update(one.job_id for one in running)
                die(db, "w")
                break
            finish(db, companions)
            running = companions = running[len(companions) :]
    with db.transaction() as session:
        ended = list(session.scalars(select(JobRow)))
    for job in ended:
        if job.id in poison:
            assert (job.state, job.error_code, job.faults) == (JobState.FAILED, "worker_lost", max_attempts)
            assert deaths[job.id] <= in_company + max_attempts
        else:
            assert (job.state, job.faults) == (JobState.SUCCEEDED, 0)
            assert deaths[job.id] <= in_company


def filled(db: Database, slots: int) -> list[lifecycle.Claim]:
    """Claim as a worker does: no more than those that run allow."""
    running: list[lifecycle.Claim] = []
    while len(running) < min((company(one.losses, slots) for one in running), default=slots):
        taken = claim(db)
        if taken is None:
            break
        running.append(taken)
    return running


def finish(db: Database, running: Iterable[lifecycle.Claim]) -> None:
    with db.transaction() as session:
        for one in running:
            assert lifecycle.succeed(session, one, [])


def test_a_retry_waits_longer_each_time(db: Database) -> None:
    job_id = submit(db, max_attempts=9)
    for fault in range(3):
        taken = claimed(db)
        with db.transaction() as session:
            assert lifecycle.fail(session, taken, OutOfMemory(), retry_s=60.0) == JobState.QUEUED
            due_in = session.execute(select(func.extract("epoch", JobRow.not_before - func.now()))).scalar_one()
        assert 30 * 2**fault <= due_in <= 60 * 2**fault
        assert claim(db) is None
        with db.transaction() as session:
            assert rescue.backlog(session) == {}
        age(db, 60 * 2**fault, "not_before")
    assert claimed(db).job_id == job_id
    assert row(db, job_id).not_before is None


def test_a_released_job_is_first_again(db: Database) -> None:
    first = submit(db)
    taken = claimed(db)
    submit(db)
    with db.transaction() as session:
        lifecycle.release(session, taken)
    assert claimed(db).job_id == first


def test_a_job_expires_in_the_queue_only(db: Database, redis: Redis) -> None:
    started = submit(db, expires_in_s=60)
    taken = claimed(db)
    late, patient = submit(db, expires_in_s=60), submit(db)
    assert maintenance.end_overdue_jobs(db, redis) == []
    age(db, 61, "expires_at")
    with db.transaction() as session:
        assert rescue.backlog(session) == {DEMO: 1}
    assert claimed(db).job_id == patient
    assert maintenance.end_overdue_jobs(db, redis) == [JobState.EXPIRED]
    assert row(db, late).state == JobState.EXPIRED
    assert row(db, late).finished_at is not None
    with db.transaction() as session:
        assert lifecycle.succeed(session, taken, [])
    assert row(db, started).state == JobState.SUCCEEDED


def test_an_attempt_beyond_its_time_is_failed(db: Database, redis: Redis) -> None:
    slow, endless = submit(db, timeout_s=30), submit(db)
    taken = claimed(db)
    claimed(db)
    assert maintenance.end_overdue_jobs(db, redis) == []
    age(db, 31, "started_at")
    assert maintenance.end_overdue_jobs(db, redis) == [JobState.FAILED]
    ended = row(db, slow)
    assert (ended.state, ended.error_code, ended.error_retryable) == (JobState.FAILED, "run_timeout", False)
    with db.transaction() as session:
        assert not lifecycle.succeed(session, taken, [])
        assert lifecycle.heartbeat(session, [lifecycle.Beat(slow, taken.attempt, 1)], lease_s=LEASE_S) == {}
    assert row(db, endless).state == JobState.RUNNING


def test_a_success_whose_answer_was_lost_may_be_repeated(db: Database) -> None:
    job_id = submit(db)
    taken = claimed(db)
    done = lifecycle.FinishedImage(0, 1, "k", "image/png", 64, 64, 9, "ab")
    for _ in range(2):
        with db.transaction() as session:
            assert lifecycle.succeed(session, taken, [done])
    assert len(row(db, job_id).images) == 1


@pytest.mark.usefixtures("announced")
def test_a_worker_that_beats_is_not_lost(db: Database) -> None:
    job_id = submit(db)
    taken = claimed(db, "gpu0@test")
    age(db, LEASE_S + 1, "lease_until")
    with db.transaction() as session:
        registry.beat(session, "gpu0@test")
        assert lifecycle.heartbeat(session, [lifecycle.Beat(job_id, taken.attempt, 0)], lease_s=LEASE_S)
    assert rescued(db) == {}
