"""The receiver believes the signature alone, and treats each message badly at most once."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from uuid import UUID

import pytest
import urllib3
from standardwebhooks import Webhook
from urllib3.exceptions import HTTPError

from tests.chaos import hooks
from tests.chaos.hooks import SECRET, Manner, Receiver

JOB = UUID(int=7)
ENDED = {"type": "job.succeeded", "data": {"id": str(JOB), "version": 4, "state": "succeeded", "images": [{}, {}]}}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with hooks.receiving() as opened:
        yield opened


def send(receiver: Receiver, message: str, secret: str = SECRET) -> int | None:
    """Send a message as a courier does; None when the receiver hangs up."""
    body, at = json.dumps(ENDED), datetime.now(UTC)
    signature = Webhook(secret).sign(message, at, body)
    headers = {"webhook-id": message, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}
    with urllib3.PoolManager(retries=False, timeout=10) as http:
        try:
            return http.request("POST", receiver.choice["url"], body=body, headers=headers).status
        except HTTPError:
            return None


def named(manner: Manner) -> str:
    return next(name for name in map(str, range(1000)) if hooks.manner_of(name) is manner)


def test_a_signed_message_is_understood(receiver: Receiver) -> None:
    assert send(receiver, named(Manner.TAKE)) == HTTPStatus.NO_CONTENT
    (one,) = receiver.heard
    assert (one.job, one.type, one.version, one.state, one.images) == (JOB, "job.succeeded", 4, "succeeded", 2)
    assert one.accepted


def test_a_message_signed_by_another_is_of_no_job(receiver: Receiver) -> None:
    send(receiver, named(Manner.TAKE), secret="whsec_" + "b3RoZXIh" * 4)
    assert receiver.heard[0].job is None


def test_a_message_is_refused_once(receiver: Receiver) -> None:
    message = named(Manner.REFUSE)
    assert [send(receiver, message), send(receiver, message)] == [500, HTTPStatus.NO_CONTENT]
    assert [one.accepted for one in receiver.heard] == [False, True]


def test_a_message_is_hung_up_on_once_and_counts(receiver: Receiver) -> None:
    message = named(Manner.HANG_UP)
    assert [send(receiver, message), send(receiver, message)] == [None, HTTPStatus.NO_CONTENT]
    assert [one.accepted for one in receiver.heard] == [True, True]
