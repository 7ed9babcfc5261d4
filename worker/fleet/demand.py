"""Demand: the cost a second of the jobs that name each checkpoint, as a mean that forgets. Couriers measure it.

It is an exponentially weighted mean over time: what came `HALF_LIFE_S` ago counts half. What is measured is the cost of submitted
jobs, whether they waited or not, so that a checkpoint that nobody serves is seen to be wanted.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from shared.infra.tables import CheckpointRow

HALF_LIFE_S = 600.0
# Younger jobs may still be in a transaction that has not ended.
SETTLED_AFTER_S = 5.0
# Nothing is told by less, and a courier that was away for long reads no more than this.
SHORTEST_S, LONGEST_S = 1.0, 3600.0

# By the database's time of the submit, not by id: clients may choose ids of their own.
MEASURE = text("""
UPDATE checkpoints SET measured_at = :ended, demand = demand * :kept + (1 - :kept) / :span_s * coalesce((
  SELECT sum(cost) FROM jobs WHERE checkpoint = name AND jobs.created_at >= :began AND jobs.created_at < :ended
), 0)
""")


def measure(session: Session) -> None:
    """Bring the demand for every checkpoint up to date. Where another courier does so, it is left to it."""
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(hashtext('demand'))")):
        return
    # In the order in which workers announce them.
    known = select(CheckpointRow.name).order_by(CheckpointRow.name).with_for_update(key_share=True)
    if not session.scalars(known).all():
        return
    last, ended = _period(session)
    away_s = (ended - last).total_seconds()
    if away_s < SHORTEST_S:
        return
    span_s = min(away_s, LONGEST_S)
    about = {"began": ended - timedelta(seconds=span_s), "ended": ended, "span_s": span_s}
    session.execute(MEASURE, {**about, "kept": 0.5 ** (away_s / HALF_LIFE_S)})


def demand(session: Session) -> Mapping[str, float]:
    """Return the demand for every checkpoint that was announced, by name."""
    return dict(session.execute(select(CheckpointRow.name, CheckpointRow.demand)).all())


def _period(session: Session) -> tuple[datetime, datetime]:
    """Return when demand was measured last and until when it can be measured now; at first, a half-life apart."""
    settled = func.now() - timedelta(seconds=SETTLED_AFTER_S)
    last, ended = session.execute(select(func.max(CheckpointRow.measured_at), settled)).one()
    return last or ended - timedelta(seconds=HALF_LIFE_S), ended
