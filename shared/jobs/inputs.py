"""The stored pictures that jobs start from: which there are, and which no job names any more: the acts on `inputs`.

A picture's object is named by its content, so many jobs of many owners may share it, and it may come again at any time. Who
stores one keeps its row first; the row is locked while the object is deleted, so what comes then is stored after, and stays.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, String, delete, exists, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.infra.db import InputRow, JobRow

# From the moment it came: its job is written well within that. It is also how often a picture in use is looked at again.
KEPT = timedelta(days=1)
JUDGED_AT_ONCE = 200


def keep(session: Session, key: str) -> None:
    """Say that a picture is about to be stored, or stored again. Waits while it is being deleted."""
    until = func.now() + KEPT
    kept = insert(InputRow).values(key=key, kept_until=until)
    session.execute(kept.on_conflict_do_update(index_elements=[InputRow.key], set_={"kept_until": until}))


def due(session: Session) -> Sequence[str]:
    """Lock the pictures whose time is over, the oldest first, at most `JUDGED_AT_ONCE`."""
    over = select(InputRow.key).where(InputRow.kept_until < func.now()).order_by(InputRow.kept_until)
    return session.scalars(over.limit(JUDGED_AT_ONCE).with_for_update(skip_locked=True)).all()


def unused(session: Session, keys: Sequence[str]) -> Sequence[str]:
    """Tell which of these pictures no job names."""
    return session.scalars(select(InputRow.key).where(InputRow.key.in_(keys), *_is_unnamed())).all()


def settle(session: Session, keys: Sequence[str], gone: Sequence[str]) -> None:
    """Drop those of `keys` that are gone; look at the others again after a while."""
    session.execute(delete(InputRow).where(InputRow.key.in_(gone)))
    session.execute(update(InputRow).where(InputRow.key.in_(keys)).values(kept_until=func.now() + KEPT))


def _is_unnamed() -> list[ColumnElement[bool]]:
    """Whether no job, in whatever state, starts from the picture: it may be looked at, or rendered again."""
    # Spelled as the indexes are, for one with the field's name as a parameter would not be found to fit; and two conditions,
    # for one that says "or" would read all jobs.
    fields = (literal_column(f"jobs.params->>'{field}'", String) for field in ("init_image", "mask_image"))
    return [~exists().select_from(JobRow).where(field == InputRow.key) for field in fields]
