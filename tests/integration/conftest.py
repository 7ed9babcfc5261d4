"""The api in this process, on the real engines."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from api.main import create_app
from shared.settings import Settings
from tests.support.factories import DEMO


@pytest.fixture(scope="module")
def front(engines: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(engines), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(front: TestClient, announced: str, redis: Redis) -> TestClient:
    assert announced == DEMO
    assert redis.ping()
    return front
