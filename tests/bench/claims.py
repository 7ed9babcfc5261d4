"""`python -m tests.bench.claims`: cost of claims and choices for the database as queues and fleets grow; a claim's plan.

Runs its own embedded Postgres. Writes `.farm/bench/claims.json` and prints a table. Asserts nothing: a timing is no test.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from pydantic import SecretStr
from sqlalchemy import TextClause, text

from deploy.standalone.farm import engines_only
from shared import migrations
from shared.fleet import registry
from shared.infra.db import Database
from shared.jobs import claims, lifecycle, rescue
from shared.settings import Settings
from tests.support.factories import DEMO, params
from worker.fleet import demand, members, waiting

OUT = Path(".farm/bench/claims.json")
FEW, WORKERS, RUNNING = 1_000, 1_000, 10_000
LEASE_S = 20.0
OWNERS = 7
PATIENCE_S = 3600.0  # a million rows are filled in by one statement
CROWD, CROWD_PER_S, CROWD_S, CROWD_UNCOUNTED = 50, 200, 10, 12
CHECKPOINTS, WARM = 300, 24

# Spread over checkpoints by Zipf's law: the n-th is named n times less than the first.
QUEUE = text("""
INSERT INTO jobs (id, state, owner, checkpoint, params, max_attempts, steps_total, virtual_start, cost)
SELECT gen_random_uuid(), 'queued', 'owner' || n % :owners, CASE rank WHEN 1 THEN :checkpoint ELSE 'c' || rank END,
       cast(:params AS jsonb), 3, 4, n, 8
FROM (
    SELECT n, floor((:checkpoints + 1) ^ (n * 0.6180339887498949 % 1)::float8)::integer AS rank
    FROM generate_series(1, :count) AS n
) AS ranked
""")
CLOCKS = text("""
WITH opened AS (INSERT INTO clocks (checkpoint, priority) SELECT DISTINCT checkpoint, 0 FROM jobs)
INSERT INTO priority_clocks (priority) VALUES (0)
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
LIBRARY = text("""
WITH digests AS (
    UPDATE workers SET library = 'the same for all'
), known AS (
    INSERT INTO checkpoints (name, size_bytes) SELECT 'c' || n, 1 FROM generate_series(2, :checkpoints) AS n RETURNING name
)
INSERT INTO holdings (worker_id, checkpoint, tier, price_s)
SELECT 'gpu' || n, name, 'disk', 1 FROM generate_series(0, :workers - 1) AS n CROSS JOIN known
UNION ALL SELECT 'w', name, 'disk', 1 FROM known
""")
SILENT = "UPDATE jobs SET lease_until = now() - interval '1 s' WHERE worker_id IN ('gpu1', 'gpu2')"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.claims", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="the long queue")
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    with _databases() as (small, large):
        found = Bench(small, large, arguments.repeats).run(arguments.rows)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")
    print(_table(found))  # noqa: T201 - a command line tool
    print(f"\nwritten to {OUT}")  # noqa: T201


class Bench:
    """Statements on a small and a large database of one server, timed by turns, so that a busy machine slows both alike.

    A transaction's begin and commit are in the figures.
    """

    def __init__(self, small: Database, large: Database, repeats: int) -> None:
        self._small = small
        self._db = large
        self._repeats = repeats
        self._roster = members.Roster(silent_after_s=PATIENCE_S)

    def run(self, rows: int) -> dict[str, Any]:
        """Return milliseconds by what was done, medians and 95th percentiles, and the plan of a claim from the long queue."""
        self._fill(self._small, QUEUE, FEW, checkpoints=1)
        self._fill(self._db, QUEUE, rows)
        for db in (self._small, self._db):
            self._fill(db, CLOCKS, 0)
        self._fill(self._db, FLEET, 0)
        self._fill(self._db, LIBRARY, 0)
        short, long, aged = self._timed(
            lambda: _claim(self._small), lambda: _claim(self._db), lambda: _claim(self._db, oldest_level=True)
        )
        crowd = self._crowd()
        plan = self._plan()
        names = [DEMO, *(f"c{rank}" for rank in range(2, CHECKPOINTS + 1))]
        all_wait, warm_wait, choice = self._timed(
            lambda: self._waiting(names), lambda: self._waiting(names[-WARM:]), lambda: self._choice(names)
        )
        self._fill(self._db, RUN, RUNNING)
        beats = self._beats("gpu0")
        beat, idle = self._timed(lambda: self._beat(beats), self._rescue)
        with self._db.transaction() as session:
            session.execute(text(SILENT))
        (busy,) = self._timed(self._rescue, repeats=1)
        found = {
            f"claim_next, {FEW:,} queued": short,
            f"claim_next, {rows:,} queued at {CHECKPOINTS} checkpoints": long,
            f"claim_next, {rows:,} queued, oldest level": aged,
            f"claim_next, {rows:,} queued, {CROWD} workers, {CROWD_PER_S} a second": crowd,
            f"what waits at {CHECKPOINTS} checkpoints": all_wait,
            f"what waits at {WARM} checkpoints": warm_wait,
            f"all that a choice reads, {WORKERS:,} workers": choice,
            f"heartbeat of {len(beats)} jobs, {WORKERS:,} workers, {RUNNING:,} running": beat,
            "rescue, nothing lost": idle,
            "rescue of two workers' jobs, one by one": busy,
        }
        return {"ms": found, "ratio": round(long["p50"] / short["p50"], 2), "plan": plan}

    def _fill(self, db: Database, statement: TextClause, count: int, *, checkpoints: int = CHECKPOINTS) -> None:
        known = {"owners": OWNERS, "checkpoint": DEMO, "params": params().model_dump_json(), "workers": WORKERS}
        known |= {"count": count, "checkpoints": checkpoints}
        wanted = {name: known[name] for name in statement.compile().params}
        with db.transaction() as session:
            session.execute(statement, wanted)
        # As autovacuum would have done by then.
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE jobs, clocks, priority_clocks, holdings"))

    def _waiting(self, names: Sequence[str]) -> None:
        with self._db.transaction() as session:
            if len(waiting.waiting(session, "w", names)) < len(names):
                raise LookupError("a queue is empty")

    def _choice(self, names: Sequence[str]) -> None:
        with self._db.transaction() as session:
            waiting.waiting(session, "w", names)
            self._roster.members(session)
            demand.demand(session)

    def _beats(self, worker_id: str) -> list[lifecycle.Beat]:
        with self._db.transaction() as session:
            held = session.execute(text("SELECT id, attempt FROM jobs WHERE worker_id = :w"), {"w": worker_id}).all()
        return [lifecycle.Beat(job_id, attempt, 1) for job_id, attempt in held]

    def _beat(self, beats: list[lifecycle.Beat]) -> None:
        with self._db.transaction() as session:
            lifecycle.heartbeat(session, beats, lease_s=3600)
            registry.beat(session, "gpu0")

    def _rescue(self) -> None:
        with self._db.transaction() as session:
            rescue.rescue_lost(session, lease_s=LEASE_S)

    def _timed(self, *acts: Callable[[], None], repeats: int | None = None) -> list[dict[str, float]]:
        times: list[list[float]] = [[] for _ in acts]
        for _ in range(repeats or self._repeats):
            for act, taken in zip(acts, times, strict=True):
                began = time.perf_counter()
                act()
                taken.append((time.perf_counter() - began) * 1000)
        return [_percentiles(one) for one in times]

    def _crowd(self) -> dict[str, float]:
        """Have many workers claim at a steady rate, each on a connection of its own, and whether or not others have ended.

        The first claims, which connect and plan, are not counted: a worker keeps its connection.
        """
        turns = CROWD_PER_S * CROWD_S // CROWD
        began = time.perf_counter() + 1 + CROWD_UNCOUNTED * CROWD / CROWD_PER_S

        def claims_of(worker: int) -> list[float]:
            taken = []
            for turn in range(-CROWD_UNCOUNTED, turns):
                due = began + (turn * CROWD + worker) / CROWD_PER_S
                time.sleep(max(0.0, due - time.perf_counter()))
                _claim(self._db)
                taken.append((time.perf_counter() - due) * 1000)
            return taken[CROWD_UNCOUNTED:]

        with ThreadPoolExecutor(CROWD) as pool:
            return _percentiles([one for taken in pool.map(claims_of, range(CROWD)) for one in taken])

    def _plan(self) -> list[str]:
        """Explain a claim, run for real and rolled back."""
        about = {"checkpoint": DEMO, "worker_id": "w", "lease_s": LEASE_S}
        with self._db.engine.connect() as connection:
            explained = text(f"EXPLAIN (ANALYZE, COSTS OFF, BUFFERS OFF) {claims.FIRST.text}")
            plan = connection.execute(explained, about).scalars().all()
            connection.rollback()
        return list(plan)


def _percentiles(times: list[float]) -> dict[str, float]:
    return {"p50": round(median(times), 2), "p95": round(sorted(times)[int(len(times) * 0.95)], 2)}


def _claim(db: Database, *, oldest_level: bool = False) -> None:
    with db.transaction() as session:
        if lifecycle.claim_next(session, DEMO, "w", lease_s=LEASE_S, oldest_level=oldest_level) is None:
            raise LookupError("the queue is empty")


@contextmanager
def _databases() -> Iterator[list[Database]]:
    """Run a server with two migrated databases."""
    with tempfile.TemporaryDirectory() as folder, engines_only(Path(folder) / "engines", environ={}) as env:
        url = env["FARM_DATABASE_URL"]
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE DATABASE small")
        databases = [_migrated(url.rpartition("/")[0] + "/small"), _migrated(url)]
        yield databases
        for db in databases:
            db.close()


def _migrated(url: str) -> Database:
    migrations.upgrade(url)
    db = Database(Settings(database_url=SecretStr(url)), pool_size=CROWD, patience_s=PATIENCE_S)
    with db.transaction() as session:
        registry.announce(session, worker_id="w", checkpoint=DEMO, size_bytes=1, hostname="host", device="cpu", slots=4)
    return db


def _table(found: dict[str, Any]) -> str:
    rows = [f"{name:64}{times['p50']:>9.2f} ms{times['p95']:>9.2f} ms" for name, times in found["ms"].items()]
    return "\n".join(
        [f"{'':64}{'p50':>12}{'p95':>12}", *rows, f"long queue to short: {found['ratio']}", "", *found["plan"]]
    )


if __name__ == "__main__":
    main()
