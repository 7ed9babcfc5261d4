"""`python -m tests.bench.claims`: what scheduling costs the database as queues and fleets grow, with the plan of a claim.

On an embedded Postgres of its own. Writes `.farm/bench/claims.json` and prints a table. Asserts nothing: a timing is no test.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from deploy.standalone.farm import engines_only
from shared import fleet, jobs, migrations
from shared.db import Database
from shared.settings import Settings
from tests.factories import DEMO, params

OUT = Path(".farm/bench/claims.json")
FEW, WORKERS, RUNNING = 1_000, 1_000, 10_000
LEASE_S = 20.0
OWNERS = 7

QUEUE = text("""
INSERT INTO jobs (id, state, owner, checkpoint, params, max_attempts, steps_total, virtual_start)
SELECT gen_random_uuid(), 'queued', 'owner' || n % :owners, :checkpoint, cast(:params AS jsonb), 3, 4, n
FROM generate_series(1, :count) AS n
""")
RUN = text("""
INSERT INTO jobs (id, state, owner, checkpoint, params, max_attempts, steps_total, attempt, worker_id, lease_until)
SELECT gen_random_uuid(), 'running', 'owner' || n % :owners, 'busy', cast(:params AS jsonb), 3, 4, 1, 'gpu' || n % :workers,
       now() + interval '1 hour'
FROM generate_series(1, :count) AS n
""")
FLEET = text("""
INSERT INTO workers (id, checkpoint, hostname, device, slots)
SELECT 'gpu' || n, :checkpoint, 'host', 'device', 16 FROM generate_series(0, :workers - 1) AS n
""")
SILENT = "UPDATE jobs SET lease_until = now() - interval '1 s' WHERE worker_id IN ('gpu1', 'gpu2')"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.claims", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="the long queue")
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    with _database() as db:
        found = Bench(db, arguments.repeats).run(arguments.rows)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")
    print(_table(found))  # noqa: T201 - a command line tool
    print(f"\nwritten to {OUT}")  # noqa: T201


class Bench:
    """Statements on one database, each timed many times; a transaction's begin and commit are in the figures."""

    def __init__(self, db: Database, repeats: int) -> None:
        self._db = db
        self._repeats = repeats

    def run(self, rows: int) -> dict[str, Any]:
        """Return milliseconds by what was done, medians and 95th percentiles, and the plan of a claim from the long queue."""
        with self._db.transaction() as session:
            fleet.announce(
                session, worker_id="w", checkpoint=DEMO, size_bytes=1, hostname="host", device="device", slots=4
            )
        self._fill(QUEUE, FEW)
        short = self._timed(self._claim)
        self._fill(QUEUE, rows)
        long = self._timed(self._claim)
        found = {
            f"claim_next, {FEW:,} queued": short,
            f"claim_next, {rows:,} queued": long,
            f"claim_next, {rows:,} queued, oldest level": self._timed(lambda: self._claim(oldest_level=True)),
        }
        plan = self._plan()
        self._fill(FLEET, 0)
        self._fill(RUN, RUNNING)
        beats = self._beats("gpu0")
        found[f"heartbeat of {len(beats)} jobs, {WORKERS:,} workers, {RUNNING:,} running"] = self._timed(
            lambda: self._beat(beats)
        )
        found["rescue, nothing lost"] = self._timed(self._rescue)
        self._do(SILENT)
        found["rescue of two workers' jobs"] = self._timed(self._rescue, repeats=1)
        return {"ms": found, "ratio": round(long["p50"] / short["p50"], 2), "plan": plan}

    def _fill(self, statement: Any, count: int) -> None:
        known = {"owners": OWNERS, "checkpoint": DEMO, "params": params().model_dump_json(), "workers": WORKERS}
        wanted = {name: value for name, value in {**known, "count": count}.items() if f":{name}" in str(statement)}
        with self._db.transaction() as session:
            session.execute(text("SET LOCAL statement_timeout = 0"))
            session.execute(statement, wanted)
        # As autovacuum would have done by then.
        with self._db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("VACUUM ANALYZE jobs"))
            connection.execute(text("SET statement_timeout = 15000"))

    def _do(self, statement: str) -> None:
        with self._db.transaction() as session:
            session.execute(text(statement))

    def _claim(self, *, oldest_level: bool = False) -> None:
        with self._db.transaction() as session:
            if jobs.claim_next(session, DEMO, "w", lease_s=LEASE_S, oldest_level=oldest_level) is None:
                raise LookupError("the queue is empty")

    def _beats(self, worker_id: str) -> list[jobs.Beat]:
        with self._db.transaction() as session:
            held = session.execute(text("SELECT id, attempt FROM jobs WHERE worker_id = :w"), {"w": worker_id}).all()
        return [jobs.Beat(job_id, attempt, 1) for job_id, attempt in held]

    def _beat(self, beats: list[jobs.Beat]) -> None:
        with self._db.transaction() as session:
            jobs.heartbeat(session, beats, lease_s=3600)
            fleet.beat(session, "gpu0")

    def _rescue(self) -> None:
        with self._db.transaction() as session:
            jobs.rescue(session)

    def _timed(self, act: Callable[[], None], repeats: int | None = None) -> dict[str, float]:
        times = []
        for _ in range(repeats or self._repeats):
            began = time.perf_counter()
            act()
            times.append((time.perf_counter() - began) * 1000)
        times.sort()
        return {"p50": round(median(times), 2), "p95": round(times[int(len(times) * 0.95)], 2)}

    def _plan(self) -> list[str]:
        """Explain a claim, run for real and rolled back."""
        statement: Any = jobs.claim_statement(DEMO, "w", LEASE_S)
        with self._db.engine.connect() as connection:
            compiled = statement.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
            escaped = str(compiled).replace(":", r"\:")
            plan = connection.execute(text(f"EXPLAIN (ANALYZE, COSTS OFF, BUFFERS OFF) {escaped}")).scalars().all()
            connection.rollback()
        return list(plan)


@contextmanager
def _database() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as folder, engines_only(Path(folder) / "engines", environ={}) as env:
        settings = Settings(database_url=env["FARM_DATABASE_URL"])  # type: ignore[arg-type]
        migrations.upgrade(env["FARM_DATABASE_URL"])
        db = Database(settings)
        yield db
        db.close()


def _table(found: dict[str, Any]) -> str:
    rows = [f"{name:64}{times['p50']:>9.2f} ms{times['p95']:>9.2f} ms" for name, times in found["ms"].items()]
    return "\n".join(
        [f"{'':64}{'p50':>12}{'p95':>12}", *rows, f"long queue to short: {found['ratio']}", "", *found["plan"]]
    )


if __name__ == "__main__":
    main()
