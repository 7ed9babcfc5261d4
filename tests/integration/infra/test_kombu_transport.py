"""Doorbells in a real Redis that refuses acks, as one does while it reads its data."""

from collections.abc import Iterator

import pytest
from celery import Celery
from kombu.connection import Connection
from kombu.message import Message
from kombu.messaging import Consumer
from redis import Redis
from redis.exceptions import ResponseError

from shared.infra import broker
from tests.support.factories import DEMO
from tests.support.waiting import LIMIT_S

SLOTS = 2


@pytest.fixture
def connection(celery: Celery, redis: Redis) -> Iterator[Connection]:
    assert redis.ping()
    broker.listen_for(celery, DEMO)
    with celery.connection_for_read() as connection:
        connection.default_channel.basic_qos(0, SLOTS, apply_global=True)
        yield connection


def heard(connection: Connection, celery: Celery) -> list[Message]:
    """Hear as many doorbells as the slots allow; they are held."""
    messages: list[Message] = []
    with Consumer(connection, celery.conf.task_queues, callbacks=[lambda _body, message: messages.append(message)]):
        while connection.default_channel.qos.can_consume():
            connection.drain_events(timeout=LIMIT_S)
    return messages


def test_a_slot_whose_ack_is_refused_hears_the_next_doorbell(
    connection: Connection, celery: Celery, redis: Redis
) -> None:
    assert broker.ring(celery, DEMO, 2 * SLOTS)
    held = heard(connection, celery)
    assert len(held) == SLOTS
    redis.set("farm:unacked_index", "not what it was")
    for message in held:
        with pytest.raises(ResponseError):
            message.ack()
    redis.delete("farm:unacked_index")
    again = heard(connection, celery)
    assert len(again) == SLOTS
    for message in again:
        message.ack()
    assert broker.waiting_doorbells(redis, DEMO) == 0
    assert connection.default_channel.qos.can_consume()
