"""`python -m shared.migrations`: upgrade the database that FARM_DATABASE_URL names."""

from sqlalchemy.exc import SQLAlchemyError

from shared.infra.logs import configure_logging
from shared.migrations import upgrade
from shared.settings import load

if __name__ == "__main__":
    settings = load()
    configure_logging(settings)
    try:
        upgrade(settings.database_url.get_secret_value())
    except SQLAlchemyError as error:
        why = str(error).splitlines()[0]
        raise SystemExit(f"farm: the database was not migrated: {why}; start it, or check FARM_DATABASE_URL") from None
