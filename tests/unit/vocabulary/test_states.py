import re

import pytest

from shared.vocabulary import states
from shared.vocabulary.states import TRANSITIONS, JobState


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(JobState)


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED])
def test_final_states_lead_nowhere(state: JobState) -> None:
    assert state.is_final
    assert not TRANSITIONS[state]


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_other_states_are_not_final(state: JobState) -> None:
    assert not state.is_final


def test_sources_are_the_inverse_of_transitions() -> None:
    for state in JobState:
        assert states.sources(state) == {origin for origin in JobState if state in TRANSITIONS[origin]}


def test_the_diagram_names_every_state() -> None:
    drawn = set(re.findall(r"\b[A-Z]{6,}\b", states.__doc__ or ""))
    assert drawn == {state.name for state in JobState}
