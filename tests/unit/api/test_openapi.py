"""The OpenAPI document is valid and small, and its operations keep the names that generated clients call them by."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate

from api.main import create_app

MAX_BYTES = 300_000
# Programs call these: a summary that changes changes a name, and breaks them.
NAMES = {
    "announceUpload": "POST /v1/uploads",
    "cancelBatch": "POST /v1/batches/{batch_id}/cancel",
    "cancelJob": "POST /v1/jobs/{job_id}/cancel",
    "deleteJob": "DELETE /v1/jobs/{job_id}",
    "fetchContactSheet": "GET /v1/batches/{batch_id}/sheet",
    "fetchImage": "GET /v1/jobs/{job_id}/images/{index}",
    "followJob": "GET /v1/jobs/{job_id}/events",
    "listCheckpoints": "GET /v1/checkpoints",
    "listJobs": "GET /v1/jobs",
    "registerEndpoint": "POST /v1/webhooks/endpoints",
    "retryJob": "POST /v1/jobs/{job_id}/retry",
    "showBatch": "GET /v1/batches/{batch_id}",
    "showJob": "GET /v1/jobs/{job_id}",
    "showQueue": "GET /v1/queue",
    "submitBatch": "POST /v1/batches",
    "submitJob": "POST /v1/jobs",
    "submitJobUnderId": "PUT /v1/jobs/{job_id}",
    "a1111PostTxt2img": "POST /sdapi/v1/txt2img",
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def test_the_document_is_valid_and_small(document: dict[str, Any]) -> None:
    validate(document)
    assert len(json.dumps(document)) <= MAX_BYTES


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_operations_keep_their_names(operations: dict[str, dict[str, Any]]) -> None:
    names = {operation["operationId"]: at for at, operation in operations.items()}
    assert len(names) == len(operations)
    assert {name: names.get(name) for name in NAMES} == NAMES


def test_the_dialect_is_a_section_of_its_own(operations: dict[str, dict[str, Any]]) -> None:
    for at, operation in operations.items():
        is_native = at.split(" ")[1].startswith(("/v1/", "/healthz", "/readyz", "/metrics"))
        assert (operation["tags"] == ["AUTOMATIC1111"]) is not is_native, at


def test_examples_of_problems_are_of_their_status(document: dict[str, Any]) -> None:
    for name, response in document["components"]["responses"].items():
        example = response["content"]["application/problem+json"]["example"]
        assert name == f"Problem{example['status']}"
        assert example["title"] == response["description"]


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from references(one)
