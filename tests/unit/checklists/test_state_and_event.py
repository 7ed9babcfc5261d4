"""A state of jobs and a type of event have their places: "How to add" in ARCHITECTURE.md.

Transitions and the drawing: `tests/unit/vocabulary/test_states.py`; the console's words: `tests/unit/api/test_words.py`; the
constraint of the table: `tests/integration/infra/test_migrations.py`.
"""

import re

import pytest

from api.main import create_app
from shared.jobs.outbox import _TYPES, EventType
from shared.vocabulary.states import TRANSITIONS, JobState
from tests.support.parts import ROOT

PAGE = (ROOT / "docs/jobs.md").read_text()


@pytest.fixture(scope="module")
def documented() -> set[str]:
    return set(re.findall(r"'([a-z_.]+)'", str(create_app().openapi()["components"]["schemas"])))


@pytest.mark.parametrize("state", [state for state in JobState if any(state in to for to in TRANSITIONS.values())])
def test_who_reaches_a_state_tells_of_it(state: JobState) -> None:
    retried = state is JobState.QUEUED  # tried again, which is nobody's news
    assert retried or state in _TYPES, f"{state} has no event: EventType and _TYPES of shared/jobs/outbox.py"


@pytest.mark.parametrize("name", [*JobState, *EventType])
def test_clients_are_told_of_it(name: str, documented: set[str]) -> None:
    assert name in documented, f"{name} is in no schema of the OpenAPI document"
    assert f"`{name}`" in PAGE, f"docs/jobs.md does not name {name}"
