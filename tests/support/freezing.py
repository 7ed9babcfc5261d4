"""Engines that hang: the processes of one are stopped for a while. They keep their connections, and answer nothing."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil
import psycopg

from deploy.standalone import leftovers
from shared.settings import Settings

Engine = Literal["postgres", "redis", "s3"]


@contextmanager
def frozen(settings: Settings, engine: Engine) -> Iterator[None]:
    """Stop an engine of the test run for as long as the block lasts."""
    processes = leftovers.tree(psutil.Process(_pids(settings)[engine]))
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _pids(settings: Settings) -> dict[str, int]:
    url = settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    run = json.loads((Path(row[0]).parent / "run.json").read_text())
    return {name: pid for name, pid, *_ in run["running"]}
