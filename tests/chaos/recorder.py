"""Recorder of the database and the storage: a trigger copies every version of every job's row.

The trigger writes in the transaction of the change, so its record is exactly the committed history.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from shared.infra.storage import IMAGES, SNAPSHOTS
from tests.chaos import marked
from tests.chaos.history import Painted, Shown, Told, Version

RECORDED = """
CREATE TABLE chaos_versions (
    seq bigserial PRIMARY KEY, at double precision NOT NULL, job uuid NOT NULL, version bigint NOT NULL, state text NOT NULL,
    attempt int NOT NULL, faults int NOT NULL, max_attempts int NOT NULL, worker text, error_code text, error_retryable boolean,
    steps int NOT NULL
);
CREATE FUNCTION chaos_record() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_versions
        (at, job, version, state, attempt, faults, max_attempts, worker, error_code, error_retryable, steps)
    VALUES (extract(epoch FROM clock_timestamp()), NEW.id, NEW.version, NEW.state, NEW.attempt, NEW.faults, NEW.max_attempts,
            NEW.worker_id, NEW.error_code, NEW.error_retryable, NEW.steps_done - NEW.resumed_from_step);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos_record AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION chaos_record();
"""

PATIENCE_S = 20  # with a database that is there, on a machine that has other work
MOVES = "SELECT coalesce((SELECT max(seq) FROM chaos_versions), 0) + coalesce((SELECT sum(attempt) FROM deliveries), 0)"


REGISTERED = """
INSERT INTO webhook_endpoints (id, owner, url, origin, events, registered, secret)
SELECT gen_random_uuid(), 'anonymous', url, url, '{job.succeeded,job.failed,job.canceled,job.expired}', true, 'whsec_c2lsZW5jZQ=='
FROM unnest(%(urls)s::text[]) AS url
"""


class Recorder:
    """The suite's own way to the database, past every proxy."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("postgresql+psycopg://", "postgresql://")

    def install(self) -> None:
        with self._connect() as connection:
            connection.execute(RECORDED)

    def unfinished(self) -> int:
        """Count the jobs that have not reached a final state."""
        with self._connect() as connection:
            row = connection.execute("SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')").fetchone()
        return int(row[0]) if row else 0

    def undelivered(self) -> int:
        """Count the webhooks that are still on their way."""
        with self._connect() as connection:
            row = connection.execute("SELECT count(*) FROM deliveries WHERE state = 'pending'").fetchone()
        return int(row[0]) if row else 0

    def moves(self) -> int:
        """Count everything that has happened so far: as long as it grows, the farm is alive."""
        with self._connect() as connection:
            row = connection.execute(MOVES).fetchone()
        return int(row[0]) if row else 0

    def worker_of(self, job: UUID) -> str | None:
        """Name the worker that runs a job."""
        with self._connect() as connection:
            row = connection.execute("SELECT worker_id FROM jobs WHERE id = %s AND state = 'running'", [job]).fetchone()
        return row[0] if row else None

    def running(self) -> dict[str, int]:
        """Count the jobs that each worker runs."""
        query = "SELECT worker_id, count(*) FROM jobs WHERE state = 'running' GROUP BY worker_id"
        with self._connect() as connection:
            return dict(connection.execute(query).fetchall())

    def register(self, urls: Sequence[str]) -> None:
        """Add receivers of every end of a job, as the api does."""
        with self._connect() as connection:
            connection.execute(REGISTERED, {"urls": list(urls)})

    def unregister(self, urls: Sequence[str]) -> None:
        """Take them away, with what is still to be told to them."""
        with self._connect() as connection:
            connection.execute("DELETE FROM webhook_endpoints WHERE url = ANY(%s)", [list(urls)])

    def versions(self) -> list[Version]:
        with self._connect() as connection, connection.cursor(row_factory=class_row(Version)) as cursor:
            return cursor.execute("SELECT * FROM chaos_versions ORDER BY seq").fetchall()

    def shown(self) -> list[Shown]:
        query = 'SELECT job_id AS job, "index", key, sha256 FROM images'
        with self._connect() as connection, connection.cursor(row_factory=class_row(Shown)) as cursor:
            return cursor.execute(query).fetchall()

    def a_success(self) -> UUID | None:
        """Return a job that has succeeded, None as long as there is none."""
        with self._connect() as connection:
            row = connection.execute("SELECT job_id FROM images LIMIT 1").fetchone()
        return row[0] if row else None

    def told(self) -> list[Told]:
        query = "SELECT job_id AS job, type, version FROM events WHERE type <> 'job.progress'"
        with self._connect() as connection, connection.cursor(row_factory=class_row(Told)) as cursor:
            return cursor.execute(query).fetchall()

    def images_wanted(self) -> dict[UUID, int]:
        with self._connect() as connection:
            return dict(connection.execute("SELECT id, (params->>'num_images')::int FROM jobs").fetchall())

    def checkpoints(self) -> dict[UUID, str]:
        """Return what each job named."""
        with self._connect() as connection:
            return dict(connection.execute("SELECT id, checkpoint FROM jobs").fetchall())

    def poisoned(self, word: str) -> frozenset[UUID]:
        query = "SELECT id FROM jobs WHERE params->>'prompt' LIKE %s"
        with self._connect() as connection:
            return frozenset(row[0] for row in connection.execute(query, [f"%{word}%"]))

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._url, connect_timeout=PATIENCE_S, autocommit=True)


def painted(bucket: Path, shown: Sequence[Shown]) -> list[Painted]:
    """Look at every shown image that is stored."""
    files = [(image, bucket / image.key) for image in shown]
    return [Painted(one.job, one.index, *marked.shown(file.read_bytes())) for one, file in files if file.exists()]


def kept(bucket: Path) -> frozenset[str]:
    """Return the keys of everything that is stored of any job."""
    files = (file for part in (IMAGES, SNAPSHOTS) for file in (bucket / part).rglob("*") if file.is_file())
    return frozenset(file.relative_to(bucket).as_posix() for file in files)


def stored(bucket: Path) -> Mapping[str, str]:
    """Return the sha256 of every image object by its key, read from the folder that the embedded store serves."""
    return {
        file.relative_to(bucket).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (bucket / "jobs").rglob("*.png")
    }
