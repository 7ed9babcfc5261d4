"""How much each checkpoint is wanted, on the real database."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event

import pytest
from sqlalchemy import func, text, update

from shared.infra.db import Database
from shared.infra.tables import CheckpointRow, JobRow
from tests.support.factories import params
from tests.support.fleet import enlist
from tests.support.jobs import submit_many
from tests.support.plans import explained
from worker.courier import maintenance
from worker.fleet import demand
from worker.fleet.demand import HALF_LIFE_S, SETTLED_AFTER_S

COST = params().cost


def came(db: Database, checkpoint: str, times: int, *, ago_s: float) -> None:
    ids = submit_many(db, times, checkpoint=checkpoint)
    with db.transaction() as session:
        at = func.now() - timedelta(seconds=ago_s)
        session.execute(update(JobRow).where(JobRow.id.in_(ids)).values(created_at=at))


def measured(db: Database, *, last_s: float | None = None) -> dict[str, float]:
    """Measure, as if it had been done so long ago last."""
    with db.transaction() as session:
        if last_s is not None:
            at = func.now() - timedelta(seconds=last_s + SETTLED_AFTER_S)
            session.execute(update(CheckpointRow).values(measured_at=at))
    maintenance.measure_demand(db)
    with db.transaction() as session:
        return dict(demand.demand(session))


def test_what_came_a_half_life_ago_counts_half(db: Database) -> None:
    enlist(db, "w", checkpoint="wanted")
    enlist(db, "w", checkpoint="left")
    came(db, "wanted", 60, ago_s=HALF_LIFE_S / 2)
    came(db, "nobody-has-it", 5, ago_s=HALF_LIFE_S / 2)
    first = 60 * COST / HALF_LIFE_S / 2
    assert measured(db) == pytest.approx({"left": 0.0, "wanted": first}, rel=0.01)
    assert measured(db) == pytest.approx({"left": 0.0, "wanted": first}, rel=0.01)  # no time has passed
    with db.transaction() as session:
        session.execute(text("TRUNCATE jobs, images"))
    assert measured(db, last_s=HALF_LIFE_S) == pytest.approx({"left": 0.0, "wanted": first / 2}, rel=0.01)


def test_a_job_is_counted_once_it_must_have_been_stored_and_once_only(db: Database) -> None:
    enlist(db, "w", checkpoint="x")
    came(db, "x", 10, ago_s=SETTLED_AFTER_S + 20)
    came(db, "x", 7, ago_s=0)
    kept = 0.5 ** (30 / HALF_LIFE_S)
    expected = 10 * COST / 30 * (1 - kept)
    assert measured(db, last_s=30)["x"] == pytest.approx(expected, rel=0.05)
    with db.transaction() as session:  # a minute later
        session.execute(text("UPDATE jobs SET created_at = created_at - interval '60 s'"))
    kept = 0.5 ** (60 / HALF_LIFE_S)
    assert measured(db, last_s=60)["x"] == pytest.approx(expected * kept + 7 * COST / 60 * (1 - kept), rel=0.05)


def test_of_couriers_that_measure_at_once_one_does(db: Database) -> None:
    enlist(db, "w", checkpoint="x")
    came(db, "x", 10, ago_s=60)
    has_measured, may_end = Event(), Event()

    def measure() -> None:
        with db.transaction() as session:
            demand.measure(session)
            has_measured.set()
            assert may_end.wait(60)

    with ThreadPoolExecutor() as pool:
        one = pool.submit(measure)
        assert has_measured.wait(60)
        assert measured(db) == {"x": 0.0}  # left to the other, and not waited for
        may_end.set()
        one.result()
    with db.transaction() as session:
        assert demand.demand(session)["x"] == pytest.approx(10 * COST / HALF_LIFE_S / 2, rel=0.01)


def test_what_came_is_read_by_index(db: Database) -> None:
    with db.transaction() as session:
        session.execute(
            text("""
            INSERT INTO jobs (id, checkpoint, params, max_attempts, steps_total, created_at)
            SELECT gen_random_uuid(), 'c' || n % 300, '{}', 1, 1, now() - make_interval(secs => n)
            FROM generate_series(1, 20000) AS n
            """)
        )
        session.execute(
            text("INSERT INTO checkpoints (name, size_bytes) SELECT 'c' || n, 1 FROM generate_series(0, 299) AS n")
        )
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs, checkpoints"))
        ended = connection.execute(text("SELECT now()")).scalar_one()
    about = {"began": ended - timedelta(seconds=5), "ended": ended, "span_s": 5.0, "kept": 0.9}
    plan = explained(db, demand.MEASURE, about)
    assert plan.indexes == {"jobs_by_checkpoint"}
    assert plan.read_whole == {"checkpoints"}
