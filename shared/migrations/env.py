"""How alembic reaches the database: one connection, one transaction, one migrator at a time."""

from alembic import context
from sqlalchemy import create_engine, text

from shared.infra.tables import Base

# Any constant that no other advisory lock of the farm uses; two migrators started together then run one after the other.
MIGRATION_LOCK = 0x6661726D


def run() -> None:
    """Apply the migrations online; there is no offline mode."""
    engine = create_engine(context.config.get_main_option("sqlalchemy.url") or "")
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
        context.run_migrations()
    engine.dispose()


run()
