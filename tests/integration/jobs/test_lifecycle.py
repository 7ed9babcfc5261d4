"""The life of a job, on the real database."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, update

from api.jobs import queries
from shared.errors import JobAlreadyFinal, JobNotFound, OutOfMemory, RenderFailed
from shared.infra.db import Database
from shared.infra.tables import JobRow
from shared.jobs import lifecycle, rescue
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.states import JobState
from tests.support.factories import DEMO, params
from tests.support.jobs import LEASE_S, claim, claimed, row, submit


def expire_leases(db: Database) -> None:
    with db.transaction() as session:
        session.execute(update(JobRow).values(lease_until=func.now() - timedelta(seconds=1)))


def image(index: int = 0) -> lifecycle.FinishedImage:
    return lifecycle.FinishedImage(
        index=index, seed=1, key=f"k{index}", content_type="image/png", width=64, height=64, size_bytes=9, sha256="ab"
    )


def test_a_job_that_goes_well(db: Database) -> None:
    job_id = submit(db, num_images=2)
    assert row(db, job_id).state == JobState.QUEUED
    taken = claimed(db)
    assert (taken.job_id, taken.attempt, taken.params) == (job_id, 1, params(num_images=2))
    running = row(db, job_id)
    assert running.state == JobState.RUNNING
    assert running.lease_until is not None
    with db.transaction() as session:
        assert lifecycle.succeed(session, taken, [image(0), image(1)])
    done = row(db, job_id)
    assert done.state == JobState.SUCCEEDED
    assert [one.key for one in done.images] == ["k0", "k1"]
    assert done.steps_done == done.steps_total == 8
    assert done.version > running.version > 1


def test_nothing_to_claim(db: Database) -> None:
    assert claim(db) is None


def test_another_checkpoints_jobs_are_left_alone(db: Database) -> None:
    submit(db, checkpoint="other")
    assert claim(db) is None


def test_the_oldest_goes_first_unless_priority_says_otherwise(db: Database) -> None:
    first, second, urgent = submit(db), submit(db), submit(db)
    with db.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == urgent).values(priority=5))
    assert [claimed(db).job_id for _ in range(3)] == [urgent, first, second]


def test_concurrent_claims_never_share_a_job(db: Database) -> None:
    submitted = {submit(db) for _ in range(40)}
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda _: claim(db), range(60)))
    ids = [one.job_id for one in taken if one is not None]
    assert len(ids) == len(set(ids)) == 40
    assert set(ids) == submitted


def test_a_row_holds_no_defaults(db: Database) -> None:
    job_id = submit(db, clip_skip=2)
    stored = row(db, job_id).params
    defaults = {name for name, field in GenerationParams.model_fields.items() if not field.is_required()}
    assert defaults & set(stored) == {"clip_skip"}
    assert claimed(db).params == params(clip_skip=2)


def test_a_job_of_a_later_release_waits_for_its_workers_and_holds_up_no_other(db: Database) -> None:
    later, ours = submit(db), submit(db)
    with db.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == later).values(params=JobRow.params.op("||")({"of_late": 1})))
    assert claim(db) is None
    assert claimed(db).job_id == ours
    put_back = row(db, later)
    assert (put_back.state, put_back.faults, put_back.worker_id) == (JobState.QUEUED, 0, None)
    assert put_back.not_before is not None


def test_a_zombie_changes_nothing(db: Database) -> None:
    job_id = submit(db)
    zombie = claimed(db)
    expire_leases(db)
    with db.transaction() as session:
        assert rescue.rescue_lost(session, lease_s=LEASE_S) == [(job_id, JobState.QUEUED)]
    heir = claimed(db)
    assert heir.attempt == zombie.attempt + 1
    before = row(db, job_id).version
    with db.transaction() as session:
        assert not lifecycle.succeed(session, zombie, [image()])
        assert lifecycle.fail(session, zombie, RenderFailed()) is None
        assert not lifecycle.release(session, zombie)
        assert lifecycle.heartbeat(session, [lifecycle.Beat(job_id, zombie.attempt, 3)], lease_s=LEASE_S) == {}
    assert row(db, job_id).version == before
    with db.transaction() as session:
        assert lifecycle.succeed(session, heir, [image()])


def test_heartbeats_extend_and_count(db: Database) -> None:
    first, second = submit(db), submit(db)
    claims = [claimed(db), claimed(db)]
    expire_leases(db)
    with db.transaction() as session:
        held = lifecycle.heartbeat(session, [lifecycle.Beat(c.job_id, c.attempt, 3) for c in claims], lease_s=LEASE_S)
        assert held == {first: 3, second: 3}
        assert rescue.rescue_lost(session, lease_s=LEASE_S) == []
    assert row(db, first).steps_done == 3


def test_version_grows_with_progress_only(db: Database) -> None:
    job_id = submit(db)
    taken = claimed(db)
    versions = [row(db, job_id).version]
    for steps_done in (0, 1, 1, 2):
        with db.transaction() as session:
            lifecycle.heartbeat(session, [lifecycle.Beat(job_id, taken.attempt, steps_done)], lease_s=LEASE_S)
        versions.append(row(db, job_id).version)
    assert [b - a for a, b in pairwise(versions)] == [0, 1, 0, 1]


def test_retryable_errors_are_retried_until_attempts_run_out(db: Database) -> None:
    job_id = submit(db)
    for expected in (JobState.QUEUED, JobState.FAILED):
        taken = claimed(db)
        with db.transaction() as session:
            assert lifecycle.fail(session, taken, OutOfMemory("too big")) == expected
    ended = row(db, job_id)
    assert (ended.error_code, ended.error_message, ended.error_retryable) == ("out_of_memory", "too big", True)
    assert ended.finished_at is not None


def test_other_errors_fail_at_once(db: Database) -> None:
    submit(db)
    taken = claimed(db)
    with db.transaction() as session:
        assert lifecycle.fail(session, taken, RenderFailed()) == JobState.FAILED


def test_a_success_after_a_retry_carries_no_error(db: Database) -> None:
    job_id = submit(db)
    taken = claimed(db)
    with db.transaction() as session:
        lifecycle.fail(session, taken, OutOfMemory())
    taken = claimed(db)
    with db.transaction() as session:
        lifecycle.succeed(session, taken, [image()])
    assert row(db, job_id).error_code is None


def test_handing_back_is_no_fault(db: Database) -> None:
    job_id = submit(db)
    for _ in range(5):
        taken = claimed(db)
        with db.transaction() as session:
            assert lifecycle.release(session, taken)
    back = row(db, job_id)
    assert (back.state, back.faults, back.attempt) == (JobState.QUEUED, 0, 5)


def test_a_job_that_kills_workers_is_failed_with_the_reason(db: Database) -> None:
    job_id = submit(db)
    for _ in range(2):
        claimed(db)
        expire_leases(db)
        with db.transaction() as session:
            rescue.rescue_lost(session, lease_s=LEASE_S)
    ended = row(db, job_id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "worker_lost")
    assert "went silent" in (ended.error_message or "")


@pytest.mark.parametrize("run_first", [False, True])
def test_no_success_follows_a_cancel(db: Database, run_first: bool) -> None:
    job_id = submit(db)
    taken = claimed(db) if run_first else None
    with db.transaction() as session:
        assert lifecycle.cancel(session, job_id).state == JobState.CANCELED
    assert claim(db) is None
    if taken is not None:
        with db.transaction() as session:
            assert not lifecycle.succeed(session, taken, [image()])
            assert lifecycle.heartbeat(session, [lifecycle.Beat(job_id, taken.attempt, 1)], lease_s=LEASE_S) == {}
    assert row(db, job_id).state == JobState.CANCELED
    assert row(db, job_id).images == []


def test_a_final_job_cannot_be_canceled(db: Database) -> None:
    job_id = submit(db)
    with db.transaction() as session:
        lifecycle.cancel(session, job_id)
    with db.transaction() as session, pytest.raises(JobAlreadyFinal, match="already canceled"):
        lifecycle.cancel(session, job_id)


def test_an_unknown_job_cannot_be_canceled(db: Database) -> None:
    with db.transaction() as session, pytest.raises(JobNotFound):
        lifecycle.cancel(session, uuid4())


def test_cancel_and_success_race_to_one_end(db: Database) -> None:
    """Whoever commits first wins; the other is told so, and the state agrees."""
    for _ in range(10):
        job_id = submit(db)
        taken = claimed(db)

        def succeed(taken: lifecycle.Claim = taken) -> bool:
            with db.transaction() as session:
                return lifecycle.succeed(session, taken, [image()])

        def cancel(job_id: UUID = job_id) -> bool:
            try:
                with db.transaction() as session:
                    lifecycle.cancel(session, job_id)
            except JobAlreadyFinal:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            succeeded, canceled = pool.submit(succeed), pool.submit(cancel)
        assert succeeded.result() != canceled.result()
        ended = row(db, job_id)
        assert ended.state == (JobState.SUCCEEDED if succeeded.result() else JobState.CANCELED)
        assert len(ended.images) == (1 if succeeded.result() else 0)


def test_listing_pages_through_everything_once(db: Database) -> None:
    submitted = [submit(db) for _ in range(7)]
    seen: list[UUID] = []
    after: queries.ListPosition | None = None
    while True:
        with db.transaction() as session:
            page = queries.listing(session, limit=3, after=after)
        if not page:
            break
        seen += [one.id for one in page]
        after = queries.ListPosition(page[-1].created_at, page[-1].id)
    assert seen == submitted[::-1]


def test_listing_filters(db: Database) -> None:
    submit(db)
    other = submit(db, checkpoint="other")
    claimed(db)
    with db.transaction() as session:
        assert [one.id for one in queries.listing(session, limit=9, checkpoint="other")] == [other]
        assert [one.id for one in queries.listing(session, limit=9, state=JobState.QUEUED)] == [other]


def test_backlog_counts_what_waits(db: Database) -> None:
    submit(db)
    submit(db)
    submit(db, checkpoint="other")
    claimed(db)
    with db.transaction() as session:
        assert rescue.backlog(session) == {DEMO: 1, "other": 1}
