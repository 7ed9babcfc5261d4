"""`python -m shared.migrations`: upgrade the database that FARM_DATABASE_URL names."""

from shared import migrations
from shared.infra.logs import configure_logging
from shared.settings import load

if __name__ == "__main__":
    settings = load()
    configure_logging(settings)
    try:
        migrations.upgrade(settings.database_url.get_secret_value())
    except migrations.ERRORS as error:
        raise SystemExit(f"farm: {migrations.told(error)}") from None
