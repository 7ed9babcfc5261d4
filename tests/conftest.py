"""The real engines, started once per test run; each test gets them empty."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack

import hypothesis
import psycopg
import pytest
import structlog
from celery import Celery
from redis import Redis

from deploy.standalone.farm import engines_only
from shared import migrations
from shared.fleet import registry
from shared.infra import broker
from shared.infra.collector import without_full_collections
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.settings import Settings
from tests.support import buckets, emptying, ordering
from tests.support.factories import DEMO

TEMPORARY = "PYTEST_DEBUG_TEMPROOT"  # where pytest makes its folder

_OWN = pytest.StashKey[str]()
_COLLECTING = ExitStack()

# How long an example takes is the machine's affair, not a property of the code.
hypothesis.settings.register_profile("farm", deadline=None)
hypothesis.settings.load_profile("farm")


def pytest_configure(config: pytest.Config) -> None:
    """One thread of torch's per process, before it is imported. Several wait for each other by spinning.

    With two on cores that other tests or a compiler want too, a picture of 0.1 s takes up to 20.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if TEMPORARY not in os.environ:
        # Each session closes pytest's usual folder to other users, and with it the way of an earlier session's Postgres to its
        # files, which from root runs as another user: at its next checkpoint it would end, and not come back.
        config.stash[_OWN] = os.environ[TEMPORARY] = tempfile.mkdtemp(prefix="farm-tests-")
    # Unless told otherwise, structlog shows an error with all variables of all frames: tensors, for seconds each.
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, renderer])
    _COLLECTING.enter_context(without_full_collections())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each of several processes its part of the long tests to begin with: one that comes last keeps the others waiting."""
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    if processes > 1:
        items[:] = ordering.dealt(items, processes)


def pytest_collection_finish() -> None:
    """Keep libraries and tests out of garbage collection: walking over a million objects takes half a second each time."""
    _COLLECTING.close()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove what tests have written, unless one of them failed."""
    if (own := session.config.stash.get(_OWN, None)) and exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(own, ignore_errors=True)


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Postgres, Redis and S3, migrated and with a bucket; the settings that reach them."""
    with engines_only(tmp_path_factory.mktemp("engines")) as env:
        patch = pytest.MonkeyPatch()
        for name, value in env.items():
            patch.setenv(name, value)
        # As on a loopback address; tests of keys ask for them.
        patch.setenv("FARM_AUTH", "none")
        # An engine that other tests starve is not down; one that is down refuses at once.
        patch.setenv("FARM_CONNECT_SECONDS", "30")
        settings = Settings(log_level="warning")
        _write_lazily(settings.database_url.get_secret_value())
        migrations.upgrade(settings.database_url.get_secret_value())
        buckets.ensured(Storage(settings))
        yield settings
        patch.undo()


def _write_lazily(url: str) -> None:
    """Have Postgres wait for no disk: what it holds need not outlive the run."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("SELECT pg_reload_conf()")


@pytest.fixture
def settings(engines: Settings) -> Settings:
    """The settings of one test."""
    return engines


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    """An empty database."""
    database = Database(settings, pool_size=20)
    with database.transaction() as session:
        emptying.empty(session)
    yield database
    database.close()


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """An empty Redis."""
    client = broker.connect(settings)
    client.flushall()
    while client.dbsize():  # what threads of the test before still had to say
        client.flushall()
    yield client
    client.close()


@pytest.fixture
def celery(settings: Settings) -> Iterator[Celery]:
    """A Celery application that can ring."""
    app = broker.celery_app(settings)
    yield app
    app.close()


@pytest.fixture
def storage(settings: Settings) -> Storage:
    """The bucket, shared by the run: keys contain job ids."""
    return Storage(settings)


@pytest.fixture
def announced(db: Database) -> str:
    """A fleet with one live worker; returns the name of its checkpoint."""
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu0@test", checkpoint=DEMO, size_bytes=1, hostname="test", device="test", slots=4
        )
    return DEMO
