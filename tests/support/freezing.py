"""Engines that hang: the processes of one are stopped for a while. They keep their connections, and answer nothing."""

import json
from collections.abc import Callable, Iterable, Iterator
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
    with stopped(psutil.Process(_pids(settings)[engine])):
        yield


@contextmanager
def stopped(leader: psutil.Process) -> Iterator[None]:
    """Stop a process and all that it started for as long as the block lasts. Raises `NoSuchProcess`."""
    leader.suspend()  # first, so that it starts no others
    processes = [process for process in leftovers.tree(leader) if process != leader]
    try:
        _each(processes, psutil.Process.suspend)
        yield
    finally:
        _each([*processes, leader], psutil.Process.resume)


def _each(processes: Iterable[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a connection of Postgres may have ended
            act(process)


def data_dir(settings: Settings) -> Path:
    """The data folder of the engines of the test run."""
    url = settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    return Path(row[0]).parent


def _pids(settings: Settings) -> dict[str, int]:
    run = json.loads((data_dir(settings) / "run.json").read_text())
    return {name: pid for name, pid, *_ in run["running"]}
