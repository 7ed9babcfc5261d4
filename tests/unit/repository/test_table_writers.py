"""Each table is written in few places, which stand here: on the syntax tree, whatever a write is called or hidden in."""

import ast
from collections import defaultdict
from functools import cache
from textwrap import dedent

import pytest

from shared.infra.tables import Base
from tests.support.parts import ROOT
from tests.support.table_writers import UNKNOWN, Values, concerns_tables, returned_rows, tables_in, writes

# Which modules insert, change or delete rows of which table. Nothing else does, but the migrations.
WRITERS = {
    "jobs": {
        "shared.jobs.lifecycle",
        "shared.jobs.claims",
        "shared.jobs.rescue",
        "shared.jobs.removal",
        "shared.jobs.fair_queue",
        "shared.jobs.submits",
    },
    "images": {"shared.jobs.lifecycle"},
    "batches": {"shared.jobs.batches"},
    "promises": {"shared.jobs.idempotency"},
    "uploads": {"shared.jobs.uploads"},
    "inputs": {"shared.jobs.inputs"},
    "removed_jobs": {"shared.jobs.removal"},
    "owner_shares": {"shared.jobs.fair_queue", "shared.jobs.submits"},
    "priority_clocks": {"shared.jobs.claims", "shared.jobs.submits"},
    "shares": {"shared.jobs.fair_queue", "shared.jobs.submits"},
    "clocks": {"shared.jobs.claims", "shared.jobs.submits"},
    "events": {"shared.jobs.outbox"},
    "deliveries": {
        "shared.jobs.outbox",
        "shared.webhooks.claims",
        "shared.webhooks.deliveries",
        "shared.webhooks.endpoints",
    },
    "webhook_endpoints": {
        *("shared.jobs.outbox", "shared.webhooks.deliveries", "shared.webhooks.endpoints"),
        "api.v1.webhooks",  # what an owner changes of a receiver, and its deletion
    },
    "webhook_secrets": {"shared.webhooks.endpoints"},
    "workers": {"shared.fleet.registry", "shared.fleet.holdings"},
    "checkpoints": {"shared.fleet.registry", "shared.fleet.holdings", "worker.fleet.demand"},
    "holdings": {"shared.fleet.holdings"},
    "weights": {"shared.fleet.registry"},
    "canaries": {"worker.health.canaries"},
    "keys": {"api.auth.keys"},
    "sessions": {"api.a1111.sessions"},
    "calls": {"api.a1111.calls"},
}
PACKAGES = ("api", "worker", "shared", "deploy")


def test_each_table_is_written_in_its_own_places() -> None:
    trees = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(source)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "migrations" not in path.parts and concerns_tables(source := path.read_text())
    }
    returns = returned_rows(trees)
    found = defaultdict(set)
    for module, tree in trees.items():
        for write in writes(tree, module, returns):
            place = f"{module}:{write.line}"
            assert write.table != UNKNOWN, f"{place} writes a table that this test cannot tell; name its class there"
            allowed = WRITERS.get(write.table, set())
            assert module in allowed, f"{place} writes {write.table}, which {sorted(allowed)} alone may (WRITERS)"
            found[write.table].add(module)
    assert found == WRITERS, "WRITERS names a module that writes the table no more"


def test_every_table_has_its_writers() -> None:
    assert WRITERS.keys() == Base.metadata.tables.keys(), "WRITERS in this file says who writes which table"


def test_files_of_sql_write_nothing_elsewhere() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.sql"):
            module = ".".join(path.relative_to(ROOT).parent.parts)
            for table in tables_in(path.read_text()):
                assert any(one.startswith(module) for one in WRITERS.get(table, ())), f"{path} writes {table}"


IMPORTS = """
    import sqlalchemy
    import sqlalchemy as sa
    from functools import partial
    from sqlalchemy import delete, insert, text, update
    from sqlalchemy import update as change
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.dialects.postgresql import insert as upsert
    from sqlalchemy.orm import Session, aliased
    import shared.infra.tables
    from shared.infra import tables
    from shared.infra.tables import Base, ImageRow, JobRow
    from shared.infra.tables import JobRow as Job
    from shared.jobs import lifecycle
"""


@pytest.mark.parametrize(
    "statement",
    [
        "update(JobRow)",
        "insert(JobRow)",
        "delete(JobRow)",
        "delete(Job)",
        "delete(tables.JobRow)",
        "delete(shared.infra.tables.JobRow)",
        "delete(table=JobRow)",
        "change(JobRow)",
        "upsert(JobRow)",
        "sa.update(JobRow)",
        "sqlalchemy.delete(JobRow)",
        "postgresql.insert(JobRow)",
        "update(aliased(JobRow))",
        "other = aliased(JobRow); update(other)",
        "row = JobRow; update(row)",
        "(row := JobRow); update(row)",
        "row = JobRow if session else ImageRow; update(row)",
        "for row in (ImageRow, JobRow): session.execute(delete(row))",
        "[session.execute(delete(row)) for row in (ImageRow, JobRow)]",
        "act = sa.delete; act(JobRow)",
        "partial(update, JobRow)()",
        "list(map(delete, [ImageRow, JobRow]))",
        "update(JobRow.__table__)",
        "JobRow.__table__.delete()",
        'Base.metadata.tables["jobs"].delete()',
        'delete(sa.table("jobs"))',
        "session.query(JobRow).delete()",
        "session.query(JobRow).filter(JobRow.id == 1).update({})",
        "session.add(JobRow(id=1))",
        "session.add_all(Job(id=one) for one in range(3))",
        "rows = [JobRow(id=1)]",
        "session.merge(given)",
        "session.delete(session.get(JobRow, 1))",
        "session.delete(lifecycle.get(session, 1))",
        "session.bulk_insert_mappings(JobRow, [])",
        "session.bulk_update_mappings(JobRow, [])",
        "session.bulk_save_objects([given])",
        'given.state = "queued"',
        "given.version += 1",
        "given.images = []",
        'setattr(given, "state", "queued")',
        "row = session.get(JobRow, 1); row.parked = True",
        "row = lifecycle.get(session, 1); row.parked = True",
        "for row in session.scalars(sa.select(JobRow)): row.parked = True",
        "for row in many: row.parked = True",
        'text("UPDATE jobs SET parked = false")',
        'text("update only public.jobs set parked = false")',
        'text("INSERT INTO jobs (id) VALUES (1)")',
        'text("DELETE\\n  FROM jobs")',
        "text('DELETE FROM \"jobs\"')",
        'text("WITH gone AS (DELETE FROM jobs RETURNING id) SELECT 1")',
        'text("TRUNCATE jobs")',
        'session.connection().exec_driver_sql("UPDATE jobs SET parked = false")',
        'where = "id = 1"; text(f"DELETE FROM jobs WHERE {where}")',
        'text(f"DELETE FROM {JobRow.__tablename__}")',
        'text("DELETE FROM " + "jobs")',
        'text("DELETE FROM " + JobRow.__tablename__)',
    ],
)
def test_a_write_to_jobs_is_found_in_every_form(statement: str) -> None:
    assert "jobs" in written(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "update(table)",
        "partial(delete, table)",
        "session.add(table)",
        "session.delete(table)",
        'text(f"DELETE FROM {table}")',
        'text("UPDATE %s SET parked = false" % table)',
        'text("INSERT INTO {} VALUES (1)".format(table))',
    ],
)
def test_a_write_to_who_knows_what_is_not_passed_over(statement: str) -> None:
    assert written(statement) == {UNKNOWN}


@pytest.mark.parametrize(
    "statement",
    [
        "sa.select(JobRow).where(JobRow.id == 1).with_for_update()",
        'text("SELECT 1 FROM jobs FOR UPDATE SKIP LOCKED")',
        '"""Nobody may DELETE FROM jobs."""',
        "named = {}; named.update(state=1)",
        "names = []; names.insert(0, JobRow)",
        "given.told = True",
        "storage.delete(given.id)",
        "print(given.state, JobRow.id, session.get(JobRow, 1))",
    ],
)
def test_reading_is_not_writing(statement: str) -> None:
    assert written(statement) == set()


def test_sql_in_files_is_read() -> None:
    assert list(tables_in("-- frees\nUPDATE jobs\nSET parked = false;\nDELETE FROM images;")) == ["jobs", "images"]


def written(statement: str) -> set[str]:
    """The tables that a function with this statement writes, and a module with it."""
    function = f"def act(session: Session, given: JobRow, many: 'list[JobRow]', table, storage):\n    {statement}"
    tree = ast.parse(f"{dedent(IMPORTS)}\n{function}")
    return {write.table for write in writes(tree, "api.anywhere", of_lifecycle())}


@cache
def of_lifecycle() -> dict[str, Values]:
    return returned_rows({"shared.jobs.lifecycle": ast.parse((ROOT / "shared/jobs/lifecycle.py").read_text())})
