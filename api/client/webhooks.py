"""Is a webhook really from the farm? For receivers written in Python; the signature is Standard Webhooks'."""

import json
from collections.abc import Mapping
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


class BadSignature(Exception):
    """The request was not signed with this secret, was altered on the way, or is too old."""


def verify(body: bytes | str, headers: Mapping[str, str], secret: str) -> dict[str, Any]:
    """Return the event in a webhook's body after checking its signature and age. Raises `BadSignature`.

    `headers` are the request's, in any case; `secret` is the endpoint's, `whsec_…`.
    """
    try:
        Webhook(secret).verify(body, {name.lower(): value for name, value in headers.items()})
    except (WebhookVerificationError, ValueError) as error:
        raise BadSignature(str(error)) from error
    event: dict[str, Any] = json.loads(body)
    return event
