"""Prompts counted over HTTP, as the workers read them."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.files.weights import Kind, WeightsFile
from shared.fleet import registry
from shared.infra.db import Database


def counted(client: TestClient, prompt: str = "", **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/prompts/tokens", json={"prompt": prompt, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize(
    ("prompt", "sizes"),
    [
        ("", [0]),
        ("a red circle", [3]),
        ("a (red:1.3) [circle] <lora:ink:0.8>", [3]),  # neither weights nor tags are read
        ("red " * 76, [75, 1]),
        ("red " * 60 + "," + " blue" * 20, [61, 20]),  # broken after the near comma
        ("red BREAK blue", [1, 1]),
        ("red AND a blue circle", [3]),  # parts are read side by side
        ("[red:a blue circle:5]", [3]),  # and so are the words of different steps
        ("unbelievableness", [3]),  # rare words are several tokens
    ],
)
def test_tokens_are_counted_by_chunk(client: TestClient, prompt: str, sizes: list[int]) -> None:
    found = counted(client, prompt)["prompt"]
    assert [chunk["tokens"] for chunk in found["chunks"]] == sizes
    assert found["tokens"] == sum(sizes)


def test_chunks_tell_with_which_words_they_begin(client: TestClient) -> None:
    found = counted(client, "red " * 75 + "a Lighthouse, at dawn", negative_prompt="blurry BREAK Émigré's")
    assert [chunk["begins"] for chunk in found["prompt"]["chunks"]] == ["red red red red", "a lighthouse , at"]
    assert [chunk["begins"] for chunk in found["negative_prompt"]["chunks"]] == ["blurry", "émigré 's"]


def test_an_embedding_takes_as_many_tokens_as_it_has_vectors(client: TestClient, db: Database) -> None:
    word = WeightsFile(Kind.EMBEDDING, "inkstyle", Path("inkstyle.safetensors"), 7, None, (0, 7), vectors=8)
    with db.transaction() as session:
        registry.announce_weights(session, [word])
    assert client.get("/v1/embeddings").json()["weights"][0]["vectors"] == 8
    found = counted(client, "red " * 70 + "inkstyle")["prompt"]
    assert [chunk["tokens"] for chunk in found["chunks"]] == [70, 8]  # it straddles no chunks
    assert (found["embeddings"], found["chunks"][1]["begins"]) == (["inkstyle"], "inkstyle")


def test_a_prompt_without_end_is_refused_as_a_job_with_it_would_be(client: TestClient) -> None:
    refused = client.post("/v1/prompts/tokens", json={"prompt": "BREAK " * 70})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
