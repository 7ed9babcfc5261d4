"""Verify webhook signatures (Standard Webhooks), for receivers written in Python."""

import json
from collections.abc import Mapping
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


class BadSignature(Exception):
    """The signature does not match the body and the secret, or the message is too old."""


def verify(body: bytes | str, headers: Mapping[str, str], secret: str) -> dict[str, Any]:
    """Check a webhook's signature and age and return its event. Raises `BadSignature`.

    `headers` are those of the request, names in any case; `secret` is that of the endpoint, `whsec_…`.
    """
    try:
        Webhook(secret).verify(body, {name.lower(): value for name, value in headers.items()})
    except (WebhookVerificationError, ValueError) as error:
        raise BadSignature(str(error)) from error
    event: dict[str, Any] = json.loads(body)
    return event
