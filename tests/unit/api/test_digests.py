"""What a client sent is known again, whatever a release reads in it."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from api.admission import legacy_digests
from api.admission.sent import Sent
from api.admission.submissions import HiresChoice, LoraChoice, Submission
from api.admission.sweeps import BatchSubmission
from api.annex import json_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
HIRES = {"prompt": "x", "hires": {"scale": 1.5}, "loras": [{"name": "a"}, {"name": "b", "weight": 1e-7}]}
EVERYTHING = HIRES | json.loads("""{
    "negative_prompt": "blurry", "steps": 30, "guidance_scale": 7, "width": 256, "height": 320, "seed": -1, "num_images": 4,
    "priority": -3, "variation": {"strength": 0.25}, "sampler": "euler", "schedule": "automatic", "checkpoint": "c", "vae": "v",
    "clip_skip": 2, "expires_in": 60, "timeout": 9, "upscale": 1.5, "webhook": {"url": "https://example.org/"}
}""")
INPAINTING = json.loads("""{
    "prompt": "x", "init_image": "aGk=", "mask_image": "aGk=", "strength": 0.5, "resize_mode": "fill", "inpaint": {"padding": 0}
}""")


def digest(body: bytes) -> str:
    return Sent("/", json_text.parsed(body)).digest


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: reordered(inner) for name, inner in reversed(value.items())}
    return [reordered(inner) for inner in value] if isinstance(value, list) else value


@given(JSON)
def test_white_space_and_the_order_of_keys_do_not_matter(value: Any) -> None:
    spelled = json.dumps(reordered(value), indent=2, ensure_ascii=False).encode()
    assert digest(spelled) == digest(json.dumps(value, separators=(",", ":")).encode())


@given(JSON, JSON)
def test_other_json_has_another_digest(one: Any, other: Any) -> None:
    texts = [json.dumps(value, sort_keys=True) for value in (one, other)]
    assert (digest(texts[0].encode()) == digest(texts[1].encode())) is (texts[0] == texts[1])


@given(JSON)
def test_a_digest_is_that_of_the_text_that_is_never_made(value: Any) -> None:
    assert json_text.digest(value) == hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def test_a_long_text_has_the_digest_of_its_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "_PIECE_CHARS", 2)
    text = 'ä𝄞"\\\n\ud800 b'
    assert json_text.digest([text]) == hashlib.sha256(json.dumps([text]).encode()).hexdigest()


def test_whatever_fastapi_can_read_has_a_digest() -> None:
    for body in ('{"a": "\\ud800"}', '{"a": NaN, "b": -Infinity, "a": 1e999}', "[" * 400 + "]" * 400, '\ufeff{"a": 1}'):
        assert len(digest(body.encode())) == 64
    assert digest('{"a": "ä"}'.encode("utf-16")) == digest('{"a": "ä"}'.encode())


def test_legacy_digests_are_what_the_release_with_schema_0018_made() -> None:
    """A default that changes, or a field that goes or is read otherwise, changes them: then they need its old default here."""
    made = [legacy_digests.of_job(Submission(**one)) for one in ({"prompt": "x"}, EVERYTHING, INPAINTING)]
    assert made == [
        "58486775268d02c0ce98b67df867f14c1dfc0c88803a3bd64fee8bec0327db55",
        "1d4d95ae0dc2e7297e7b695cf856e5e83c4370851f72eb2164b5349a1e5a5779",
        "64317afcbe089170bf751410ad8a9e126310c51ad82517ba6f2656c8992f42e4",
    ]
    listed = {"jobs": [EVERYTHING, INPAINTING], "name": "n", "webhook": {"url": "https://example.org/"}}
    swept = {"template": {"prompt": "x"}, "grid": {"steps": [1, 2]}}
    assert [legacy_digests.of_batch(BatchSubmission(**one)) for one in (listed, swept)] == [
        "44eff17c7c1f896cf4bd2d8e02cc1f12f8fbd3ff75eb16d5950f3c548cb5002b",
        "21615927e9a71df6c59e3c75e00dc3ed6075e924b9c593f29632652fec9f18a4",
    ]


class LaterHires(HiresChoice):
    of_late: int | None = 1


class LaterLora(LoraChoice):
    of_late: int | None = 1


class Later(Submission):
    of_late: int | None = 1
    hires: LaterHires | None = None
    loras: list[LaterLora] = Field(default_factory=list)  # type: ignore[assignment]


class LaterBatch(BatchSubmission):
    of_late: int | None = 1
    jobs: list[Later] | None = None  # type: ignore[assignment]


def test_a_field_more_leaves_legacy_digests_as_they_are() -> None:
    for body in ({"prompt": "x"}, EVERYTHING, INPAINTING):
        assert legacy_digests.of_job(Later(**body)) == legacy_digests.of_job(Submission(**body))
    listed = {"jobs": [EVERYTHING, INPAINTING]}
    assert legacy_digests.of_batch(LaterBatch(**listed)) == legacy_digests.of_batch(BatchSubmission(**listed))


def test_a_body_that_says_something_new_has_no_legacy_digest() -> None:
    new = {"of_late": 1}
    bodies = ({**HIRES, **new}, {**HIRES, "hires": new}, {**HIRES, "loras": [{"name": "a", **new}]})
    assert [legacy_digests.of_job(Later(**body)) for body in bodies] == [""] * 3
    assert legacy_digests.of_batch(LaterBatch(jobs=[{**HIRES, **new}])) == ""
