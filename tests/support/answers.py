"""What clients send to the api and get from it."""

from typing import Any

from tests.support.factories import BODY


def post_job(client: Any, *, headers: dict[str, str] | None = None, **changes: Any) -> Any:
    """Submit a small job; returns the answer, whatever it is."""
    return client.post("/v1/jobs", json={**BODY, **changes}, headers=headers)


def accepted(client: Any, **changes: Any) -> dict[str, Any]:
    """Submit a small job; returns it as the api shows it."""
    answer = post_job(client, **changes)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem document of this kind; returns the document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["detail"]
    return body
