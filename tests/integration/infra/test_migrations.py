"""The migrations build exactly the schema that the code declares, up and down."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from shared import migrations
from shared.infra.db import Database
from shared.infra.tables import Base
from shared.settings import Settings


def test_the_schema_is_what_the_code_declares(db: Database) -> None:
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert context.get_current_revision() == migrations.head()
        assert compare_metadata(context, Base.metadata) == []


def test_down_and_up_again(settings: Settings, db: Database) -> None:
    url = settings.database_url.get_secret_value()
    with migrations.alone(url) as connection:
        command.downgrade(migrations.config(connection), "base")
    migrations.upgrade(url)
    migrations.upgrade(url)
    with db.engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == migrations.head()
