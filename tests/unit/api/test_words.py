"""The console has words for all that the farm may say, and repeats none of its limits."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api import problems
from api.main import create_app
from api.v1.jobs import MAX_SEARCH_CHARS
from api.web import console
from shared.errors import FarmError
from shared.vocabulary.forecast import Reason
from shared.vocabulary.infotext import _UPSCALER_LABELS
from shared.vocabulary.params import GenerationParams, MaskFill, ResizeMode
from shared.vocabulary.samplers import SCHEDULE_LABELS
from shared.vocabulary.states import JobState
from shared.webhooks.deliveries import DeliveryState

SCRIPTS = Path(__file__).parents[3] / "api/web/static/js"
WORDS = (SCRIPTS / "words.js").read_text()
# Numbers that only look like limits of the api: what a form may leave empty, and the console's own widgets.
OWN = {
    "fields.js": {"low: 0"},
    "job-card.js": {"max: 1"},
    "keys.js": {"min: 1"},
    "picture-input.js": {"min: 4"},
    "presets.js": {"maxLength: 40"},
    "sweep-grid.js": {"max: 1"},
    "weights.js": {"min: -1", "max: 2"},
}


def said(name: str) -> dict[str, str]:
    """Return what a block of words.js says, by its names."""
    (block,) = re.findall(rf"\b{name}: \{{(.*?)\}}", WORDS, re.DOTALL)
    return dict(re.findall(r'(\w+): \[?"(.*?)"', block))


def test_every_reason_to_wait_has_its_words() -> None:
    assert set(said("reasons")) == set(Reason)


def test_every_state_of_a_job_has_its_words() -> None:
    assert set(said("states")) == {*JobState, "sending", "waiting"}


def test_every_state_of_a_delivery_has_its_words() -> None:
    assert set(said("deliveryStates")) == set(DeliveryState)


def test_every_choice_has_its_words() -> None:
    assert set(said("resize_mode")) == set(ResizeMode)
    assert set(said("mask_fill")) == set(MaskFill)


def test_schedules_and_upscalers_are_called_as_in_parameter_texts() -> None:
    assert said("schedules") == SCHEDULE_LABELS
    assert said("hires_upscaler") == _UPSCALER_LABELS


def test_every_parameter_of_an_image_has_a_label() -> None:
    unnamed = set(GenerationParams.model_fields) - {"prompt"} - set(said("fields")) - set(said("labels"))
    assert not unnamed, "words.js has no label for a parameter that the viewer shows"


def test_every_field_of_the_form_has_words_and_no_other() -> None:
    (block,) = re.findall(r"export const FIELDS = \{(.*?)\n\};", (SCRIPTS / "fields.js").read_text(), re.DOTALL)
    fields = set(re.findall(r"^  (\w+):", block, re.MULTILINE))
    assert set(said("fields")) == fields, "words.fields of words.js and FIELDS of fields.js are not of the same fields"


def codes(error: type[FarmError] = FarmError) -> Iterator[str]:
    """Yield the codes of an error and of all that derive from it."""
    yield error.code
    for one in error.__subclasses__():
        yield from codes(one)


def test_advice_is_about_errors_that_the_farm_answers_with() -> None:
    known = {*codes(), *problems._CODES.values(), *map(str, problems._CODES), "403", "429"}
    assert set(said("errors")) - {"unreachable"} <= known


def test_the_console_follows_exactly_the_jobs_that_may_still_change() -> None:
    (active,) = re.findall(r"ACTIVE = new Set\(\[(.*?)\]\)", (SCRIPTS / "jobs.js").read_text())
    assert set(re.findall(r'"(\w+)"', active)) == {state for state in JobState if not state.is_final}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


def test_the_consoles_limits_are_those_of_the_openapi_document(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for form, fields in console.limits().items():
        # The document leaves out a default of null.
        given = {
            name: {key: value for key, value in field.items() if value is not None} for name, field in fields.items()
        }
        assert given == {
            name: console._limits(field, schemas) for name, field in schemas[form]["properties"].items()
        }, form
    (search,) = (one for one in document["paths"]["/v1/jobs"]["get"]["parameters"] if one["name"] == "prompt")
    assert console._limits(search["schema"], schemas) == {"maxLength": MAX_SEARCH_CHARS}


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.js")), ids=lambda script: script.name)
def test_no_limit_is_written_by_hand(script: Path) -> None:
    limit = r"\b(?:min|max|low|high|minLength|maxLength|maxItems|minimum|maximum): -?[\d._]+"
    assert set(re.findall(limit, script.read_text())) == OWN.get(script.name, set())


def test_lists_are_asked_for_in_pages_that_the_api_gives(document: dict[str, Any]) -> None:
    pages: list[tuple[str, int]] = []
    for script in SCRIPTS.glob("*.js"):
        text = script.read_text()
        sizes = dict(re.findall(r"const (\w+) = (\d+);", text))
        for path, number, name in re.findall(r"(/v1/[\w/]+)\?(?:[\w=&]*)limit=(?:(\d+)|\$\{(\w+)\})", text):
            pages.append((path, int(number or sizes[name])))
        pages += [("/v1/jobs", int(sizes[name])) for name in re.findall(r"limit: (\w+)", text)]
    assert len(pages) == 5
    for path, size in pages:
        (limit,) = (one for one in document["paths"][path]["get"]["parameters"] if one["name"] == "limit")
        assert size <= limit["schema"]["maximum"], path
