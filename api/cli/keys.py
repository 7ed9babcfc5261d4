"""`farm keys`: create, list and revoke API keys, directly in the database, so that it can create the first key."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import SecretStr

from api.cli.output import Failure, note, say, shortened, table

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

app = typer.Typer(rich_markup_mode=None, help="Create, list and revoke API keys.", no_args_is_help=True)

DataDir = Annotated[Path, typer.Option(help="Data folder of a running `farm up`; ignored if FARM_DATABASE_URL is set.")]
DEFAULT_DATA_DIR = Path(".farm")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who uses the key.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="submit, read or admin; may be repeated. Default: submit and read.")
    ] = None,
    weight: Annotated[float, typer.Option(help="Share of the GPUs, relative to other keys.")] = 1.0,
    max_priority: Annotated[int, typer.Option(help="The highest priority that its jobs may have.")] = 0,
    rate: Annotated[
        int | None,
        typer.Option(
            help="Requests per minute; costly ones count as several. Token counts have a separate limit, at least 150."
        ),
    ] = None,
    max_queued: Annotated[int | None, typer.Option(help="How many of its jobs may wait in the queue.")] = None,
    max_running: Annotated[int | None, typer.Option(help="How many of its jobs may run at the same time.")] = None,
    expires_in: Annotated[int | None, typer.Option(help="Seconds until the key expires.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Create a key and print its token, which is not shown again."""
    from pydantic import ValidationError

    from api.auth import keys

    fields = {
        "name": name,
        "scopes": scope or ["submit", "read"],
        "weight": weight,
        "max_priority": max_priority,
        "requests_per_minute": rate,
        "max_queued": max_queued,
        "max_running": max_running,
        "expires_in": expires_in,
    }
    try:
        new_key = keys.NewKey.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise Failure(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    with _session(data_dir) as session:
        row, token = keys.create(session, new_key)
    note(f"Key {row.id} for {shortened(row.name, 60)}. Save this token; it cannot be shown again:")
    say(token.text)


@app.command("list")
def list_keys(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """List all keys. Secrets are not shown: only their hashes are stored."""
    from api.auth import keys

    with _session(data_dir) as session:
        rows = [
            (
                row.id,
                shortened(row.name, 40),
                f"farm_{row.prefix}_…",
                ",".join(row.scopes),
                f"{row.weight:g}",
                _state(row.revoked_at, row.expires_at),
                _moment(row.last_used_at),
            )
            for row in keys.listing(session)
        ]
    table(("ID", "NAME", "TOKEN", "SCOPES", "WEIGHT", "STATE", "LAST USED"), rows)


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Key id, as shown by `farm keys list`.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Revoke a key for good. Every api process refuses it within five seconds."""
    from api.auth import keys

    with _session(data_dir) as session:
        row = keys.revoke(session, key_id)
    say(f"{row.id} is revoked")


@contextmanager
def _session(data_dir: Path) -> "Iterator[Session]":
    # Only here: SQLAlchemy takes longer to load than most commands to run.
    from sqlalchemy.exc import ProgrammingError

    from shared.infra.db import Database
    from shared.settings import load

    db = Database(load(database_url=SecretStr(_database_url(data_dir))), pool_size=1)
    try:
        with db.transaction() as session:
            yield session
    except ProgrammingError as error:
        raise Failure("this database has no farm in it; run `farm migrate` first") from error
    finally:
        db.close()


def _database_url(data_dir: Path) -> str:
    if url := os.environ.get("FARM_DATABASE_URL"):
        return url
    try:
        from deploy.standalone.postgres import known_url
    except ImportError as error:
        raise Failure("FARM_DATABASE_URL is not set") from error
    url = known_url(data_dir)
    if url is None:
        raise Failure(
            f"there is no farm in {data_dir}; name its folder with --data-dir, or its database with FARM_DATABASE_URL"
        )
    return url


def _state(revoked_at: "datetime | None", expires_at: "datetime | None") -> str:
    if revoked_at is not None:
        return "revoked"
    return f"until {_moment(expires_at)}" if expires_at else "valid"


def _moment(time: "datetime | None") -> str:
    return f"{time:%Y-%m-%d %H:%M}" if time else "never"
