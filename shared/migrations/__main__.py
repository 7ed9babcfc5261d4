"""`python -m shared.migrations`: upgrade the database that FARM_DATABASE_URL names."""

from shared.migrations import upgrade
from shared.settings import Settings
from shared.telemetry import configure_logging

if __name__ == "__main__":
    settings = Settings()
    configure_logging(settings)
    upgrade(settings.database_url.get_secret_value())
