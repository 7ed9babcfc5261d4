"""Query plans of the real Postgres."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from sqlalchemy import TextClause
from sqlalchemy.dialects import postgresql

from shared.infra.db import Database

# Rows of as many holdings as workers of a large farm announce.
LIBRARIES = """
INSERT INTO checkpoints (name, size_bytes) SELECT 'c' || n, 1 FROM generate_series(0, 99) AS n;
INSERT INTO workers (id, checkpoint, hostname, device, slots) SELECT 'w' || n, 'c0', '', '', 1 FROM generate_series(0, 99) AS n;
INSERT INTO holdings (worker_id, checkpoint, tier, price_s) SELECT workers.id, name, 'disk', 1 FROM workers, checkpoints;
"""


@dataclass(frozen=True)
class QueryPlan:
    """The indexes that a statement walks, the tables that it reads whole, and whether it sorts."""

    indexes: set[str]
    read_whole: set[str]
    sorts: bool


def explained(db: Database, statement: TextClause, values: Mapping[str, Any], *, is_generic: bool = False) -> QueryPlan:
    """Plan a statement for these values, or, as Postgres may once a connection has repeated it, for any values."""
    compiled = statement.compile(dialect=postgresql.dialect(paramstyle="numeric_dollar"))
    arguments = sql.SQL(", ").join(values[name] for name in compiled.positiontup or ())
    given = sql.SQL("({})").format(arguments) if values else sql.SQL("")
    with db.engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(f"SET LOCAL plan_cache_mode = force_{'generic' if is_generic else 'custom'}_plan")
        cursor.execute(f"PREPARE explained AS {compiled}")
        cursor.execute(sql.SQL("EXPLAIN (FORMAT JSON) EXECUTE explained {}").format(given))
        ((plans,),) = cursor.fetchall()
        cursor.execute("DEALLOCATE explained")
    nodes = list(_nodes(plans[0]["Plan"]))
    return QueryPlan(
        indexes={node["Index Name"] for node in nodes if "Index Name" in node},
        read_whole={node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"},
        sorts=any("Sort" in node["Node Type"] for node in nodes),
    )


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
