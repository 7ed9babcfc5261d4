"""How alembic reaches the database: on the connection that `shared.migrations` hands it, within its transaction."""

from alembic import context

from shared.infra.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, compare_server_default=True
)
context.run_migrations()
