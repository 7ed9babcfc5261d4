"""`farm migrate`: upgrade the schema of an external database. The embedded farm migrates its own."""

import os

from api.cli.output import Failure, say


def migrate() -> None:
    """Upgrade the schema of the database that FARM_DATABASE_URL names."""
    if not os.environ.get("FARM_DATABASE_URL"):
        raise Failure("FARM_DATABASE_URL is not set; the embedded farm (farm up) migrates its own database")
    # Only here: SQLAlchemy takes longer to load than most commands to run.
    from shared import migrations
    from shared.settings import load

    try:
        url = load().database_url.get_secret_value()
        migrations.upgrade(url)
        revision = migrations.current(url)
    except migrations.ERRORS as error:
        raise Failure(migrations.told(error)) from error
    newer = ", newer than this code, which is compatible with it" if migrations.is_newer(revision) else ""
    say(f"the schema is at revision {revision}{newer}")
