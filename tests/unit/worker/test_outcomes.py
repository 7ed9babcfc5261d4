"""The outcome of an attempt: each result of a render, with a worker that stays, leaves or is unfit."""

from dataclasses import replace
from itertools import product

import pytest

from shared.errors import Canceled, FarmError, NotANumber, OutOfMemory, RenderFailed, WorkerUnfit
from shared.jobs.lifecycle import FinishedImage
from worker.slots.outcomes import Aborted, AttemptOutcome, Failed, Released, Succeeded, Superseded, decide

IMAGE = FinishedImage(
    index=0, seed=1, key="k", content_type="image/png", width=8, height=8, size_bytes=1, sha256="", flagged=False
)
BOTH = (False, True)


@pytest.mark.parametrize("is_drained", BOTH)
def test_stored_images_succeed_even_when_the_worker_leaves(is_drained: bool) -> None:
    images = [IMAGE, replace(IMAGE, index=1)]
    assert decide(images, is_drained=is_drained, is_unfit=False) == Succeeded(images)


def test_a_job_that_was_withdrawn_because_the_worker_leaves_is_released_with_its_snapshot() -> None:
    assert decide(Canceled(), is_drained=True, is_unfit=False) == Released(is_spoiled=False)


def test_a_job_that_ended_elsewhere_is_aborted() -> None:
    assert decide(Canceled(), is_drained=False, is_unfit=False) == Aborted()


@pytest.mark.parametrize(("error", "is_drained"), [*product((OutOfMemory(), RenderFailed(), NotANumber()), BOTH)])
def test_an_error_fails_the_attempt_even_when_the_worker_leaves(error: FarmError, is_drained: bool) -> None:
    assert decide(error, is_drained=is_drained, is_unfit=False) == Failed(error)


@pytest.mark.parametrize(("error", "is_drained"), [*product((WorkerUnfit(), RenderFailed(), NotANumber()), BOTH)])
def test_an_unfit_worker_releases_its_job_and_spoils_the_snapshot(error: FarmError, is_drained: bool) -> None:
    assert decide(error, is_drained=is_drained, is_unfit=True) == Released(is_spoiled=True)


def test_each_outcome_has_the_name_that_metrics_know_it_by() -> None:
    error = RenderFailed()
    outcomes: list[AttemptOutcome] = [
        Succeeded([]),
        Failed(error),
        Failed(error, is_retried=True),
        Released(),
        Released(is_spoiled=True),
        Aborted(),
        Superseded(),
    ]
    expected = ["succeeded", "failed", "retried", "released", "released", "aborted", "superseded"]
    assert [outcome.label for outcome in outcomes] == expected
