"""Garbage collection of init images and masks in the storage (the `inputs` table).

Objects are content-addressed, so jobs of many owners may share one, and a client may send it again at any time. Whoever stores
one calls `keep` first. Its row is locked while the object is deleted, so a picture that comes meanwhile is stored afterwards.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, String, delete, exists, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.infra.tables import InputRow, JobRow

# From the moment it came: its job is written well within that. It is also how often a picture in use is looked at again.
KEPT = timedelta(days=1)
JUDGED_AT_ONCE = 200


def keep(session: Session, key: str) -> None:
    """Record that a picture is about to be stored. Waits while it is being deleted."""
    until = func.now() + KEPT
    kept = insert(InputRow).values(key=key, kept_until=until)
    session.execute(kept.on_conflict_do_update(index_elements=[InputRow.key], set_={"kept_until": until}))


def due(session: Session) -> Sequence[str]:
    """Lock and return pictures past `kept_until`, the oldest first, at most `JUDGED_AT_ONCE`."""
    over = select(InputRow.key).where(InputRow.kept_until < func.now()).order_by(InputRow.kept_until)
    return session.scalars(over.limit(JUDGED_AT_ONCE).with_for_update(skip_locked=True)).all()


def unused(session: Session, keys: Sequence[str]) -> Sequence[str]:
    """Return those of the pictures that no job uses."""
    return session.scalars(select(InputRow.key).where(InputRow.key.in_(keys), *_is_unnamed())).all()


def settle(session: Session, keys: Sequence[str], gone: Sequence[str]) -> None:
    """Delete the rows of `gone`; keep the other `keys` for another day."""
    session.execute(delete(InputRow).where(InputRow.key.in_(gone)))
    session.execute(update(InputRow).where(InputRow.key.in_(keys)).values(kept_until=func.now() + KEPT))


def _is_unnamed() -> list[ColumnElement[bool]]:
    """Whether no job uses the picture, in any state: a final job may still be shown or retried."""
    # Spelled as the indexes are, for one with the field's name as a parameter would not be found to fit; and two conditions,
    # for one that says "or" would read all jobs.
    fields = (literal_column(f"jobs.params->>'{field}'", String) for field in ("init_image", "mask_image"))
    return [~exists().select_from(JobRow).where(field == InputRow.key) for field in fields]
