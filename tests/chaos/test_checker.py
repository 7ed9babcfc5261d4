"""The checker accepts a good history and names every way in which one can be broken."""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any
from uuid import UUID

import pytest

from tests.chaos.checker import check
from tests.chaos.history import Fault, Heard, History, Laid, Painted, Seen, Shown, Spoiled, Told, Version
from tests.chaos.report import recoveries, report, table
from tests.chaos.steady import judged

JOB, OTHER = UUID(int=1), UUID(int=2)
KEY = f"jobs/{JOB}/2/0.png"


def rows(job: UUID, *moves: tuple[str, int], begin: int = 1, faults: int = 0, **last: Any) -> list[Version]:
    """A job's versions: each move is a state and an attempt."""
    made = [
        Version(begin + index, float(begin + index), job, index + 1, state, attempt, 0, 3, worker=f"gpu{attempt}@host")
        for index, (state, attempt) in enumerate(moves)
    ]
    made[-1] = replace(made[-1], faults=faults, **last)
    return made


RERUN = rows(JOB, ("queued", 0), ("running", 1), ("queued", 1), ("running", 2), ("succeeded", 2), faults=1)
CANCELED = rows(OTHER, ("queued", 0), ("running", 1), ("canceled", 1), begin=10)


def seen(order: int, act: str, status: int | None, job: UUID | None = JOB, **fields: Any) -> Seen:
    return Seen(0, order, act, float(order), order + 0.5, status, job=job, **fields)


def heard(at: float, state: str = "succeeded", version: int = 5, job: UUID | None = JOB, **fields: Any) -> Heard:
    message = Heard(
        f"evt_{job}_{version}", at, True, f"{state} {version}", job, f"job.{state}", version, state, images=1
    )
    return replace(message, **fields)


GOOD = History(
    versions=[*RERUN, *CANCELED],
    seen=[
        seen(1, "submit", None, None, key="a"),
        seen(2, "submit", 503, None, key="a", code="database_unavailable", retry_after="5"),
        seen(3, "submit", 202, key="a", state="queued", version=1, hooked=True),
        seen(4, "poll", 200, state="running", version=2),
        seen(5, "poll", 200, state="succeeded", version=5),
        seen(6, "fetch", 200, sha256="ab"),
        seen(7, "submit", 202, OTHER, key="b", state="queued", version=1),
        seen(8, "cancel", 200, OTHER, state="canceled", version=3),
        seen(9, "cancel", 409, JOB),
    ],
    shown=[Shown(JOB, 0, KEY, "ab")],
    objects={KEY: "ab", f"jobs/{JOB}/1/0.png": "of the attempt that died"},
    kept=frozenset({KEY}),
    told=[
        *(Told(JOB, "job.started", 2), Told(JOB, "job.started", 4), Told(JOB, "job.succeeded", 5)),
        *(Told(OTHER, "job.started", 2), Told(OTHER, "job.canceled", 3)),
    ],
    heard=[heard(5.2, accepted=False), heard(9.0), heard(9.1)],
    faults=[Fault("gpu_kill", 2.5, 2.5, "gpu1"), Fault("redis_kill", 4.0, 4.5)],
    images_wanted={JOB: 1, OTHER: 1},
    checkpoints={JOB: "a", OTHER: "b"},
    painted=[Painted(JOB, 0, "0a", "aa")],
    laid=[Laid("a", "aa01", "0a", 0.0, 4.5), Laid("a", "aa02", "0c", 4.4, inf), Laid("b", "bb01", "0b", 0.0, inf)],
    spoiled=[Spoiled("b", 10.0, 12.0)],
)


def with_rows(versions: list[Version]) -> History:
    return replace(GOOD, versions=versions)


def with_seen(*more: Seen) -> History:
    return replace(GOOD, seen=[*GOOD.seen, *more])


def with_heard(*more: Heard) -> History:
    return replace(GOOD, heard=[*GOOD.heard, *more])


def failed(**last: Any) -> History:
    versions = rows(OTHER, ("queued", 0), ("running", 1), ("failed", 1), begin=10, **last)
    told = [*GOOD.told[:-1], Told(OTHER, "job.failed", 3)]
    return replace(GOOD, versions=[*RERUN, *versions], seen=GOOD.seen[:6], told=told)


BROKEN: dict[str, Callable[[], History]] = {
    "an accepted job has no row": lambda: with_rows(CANCELED),
    "a job waits for ever": lambda: with_rows([*RERUN, *CANCELED[:1]]),
    "a job runs for ever": lambda: with_rows([*RERUN[:4], *CANCELED]),
    "a final state changes": lambda: with_rows(
        [*RERUN, replace(RERUN[-1], seq=6, version=6, state="failed"), *CANCELED]
    ),
    "a finished job runs again": lambda: with_rows([*RERUN, replace(RERUN[3], seq=6, version=6, attempt=3), *CANCELED]),
    "a queued job succeeds": lambda: with_rows([*RERUN[:3], replace(RERUN[4], attempt=1), *CANCELED]),
    "a job begins in the middle": lambda: with_rows([*RERUN[1:], *CANCELED]),
    "a version is used twice": lambda: with_rows([*RERUN[:-1], replace(RERUN[-1], version=4), *CANCELED]),
    "a version falls": lambda: with_rows([*RERUN[:-1], replace(RERUN[-1], version=2), *CANCELED]),
    "a claim does not raise the attempt": lambda: with_rows(
        [*RERUN[:3], *(replace(one, attempt=1) for one in RERUN[3:]), *CANCELED]
    ),
    "an attempt changes hands without a claim": lambda: with_rows(
        [*RERUN[:-1], replace(RERUN[-1], attempt=3), *CANCELED]
    ),
    "a job is tried too often": lambda: failed(faults=4, error_code="worker_lost", error_retryable=True),
    "a job is given up too early": lambda: failed(faults=2, error_code="worker_lost", error_retryable=True),
    "a job fails and nobody knows why": lambda: failed(faults=3),
    "a good job fails": lambda: failed(faults=1, error_code="render_failed", error_retryable=False),
    "a poisoned job succeeds": lambda: replace(GOOD, poisoned=frozenset({JOB})),
    "two attempts are shown": lambda: replace(GOOD, shown=[*GOOD.shown, Shown(JOB, 1, f"jobs/{JOB}/1/0.png", "x")]),
    "one image is shown twice": lambda: replace(GOOD, shown=[*GOOD.shown, *GOOD.shown]),
    "a stale attempt is shown": lambda: replace(GOOD, shown=[Shown(JOB, 0, f"jobs/{JOB}/1/0.png", "x")]),
    "an image is missing from the result": lambda: replace(GOOD, images_wanted={JOB: 2}),
    "a success shows nothing": lambda: replace(GOOD, shown=[]),
    "a canceled job shows images": lambda: replace(
        GOOD, shown=[*GOOD.shown, Shown(OTHER, 0, f"jobs/{OTHER}/1/0.png", "x")]
    ),
    "images belong to no job": lambda: replace(GOOD, shown=[*GOOD.shown, Shown(UUID(int=3), 0, "jobs/3/1/0.png", "x")]),
    "an object is not there": lambda: replace(GOOD, objects={}),
    "an object was overwritten": lambda: replace(GOOD, objects={KEY: "of a zombie"}),
    "a picture is made with another's weights": lambda: replace(GOOD, painted=[Painted(JOB, 0, "0b", "bb")]),
    "a picture is made with weights of two": lambda: replace(GOOD, painted=[Painted(JOB, 0, "00", "aa")]),
    "a picture tells of another file": lambda: replace(GOOD, painted=[Painted(JOB, 0, "0a", "bb")]),
    "a picture tells of no file": lambda: replace(GOOD, painted=[Painted(JOB, 0, "0a", "")]),
    "a file is used long after it was replaced": lambda: replace(
        GOOD, laid=[replace(GOOD.laid[0], ended=3.5), *GOOD.laid[1:]]
    ),
    "a file is used before it was there": lambda: replace(
        GOOD, laid=[replace(GOOD.laid[0], began=5.5), *GOOD.laid[1:]]
    ),
    "a checkpoint that is whole is called bad": lambda: replace(
        failed(faults=1, error_code="bad_checkpoint", error_retryable=False), spoiled=[]
    ),
    "a checkpoint that is whole is refused": lambda: with_seen(
        seen(20, "submit", 422, None, code="checkpoint_refused", checkpoint="a")
    ),
    "a client downloads another picture": lambda: with_seen(seen(20, "fetch", 200, sha256="other")),
    "what a dead attempt stored is never swept": lambda: replace(GOOD, kept=frozenset({KEY, f"jobs/{JOB}/1/0.png"})),
    "a picture is swept away": lambda: replace(GOOD, kept=frozenset()),
    "an end is told to nobody": lambda: replace(GOOD, told=GOOD.told[:-1]),
    "an end is told twice": lambda: replace(GOOD, told=[*GOOD.told, GOOD.told[-1]]),
    "an end is told that was not": lambda: replace(GOOD, told=[*GOOD.told[:-1], Told(OTHER, "job.succeeded", 3)]),
    "a webhook never comes": lambda: replace(GOOD, heard=[]),
    "a webhook is refused and not repeated": lambda: replace(GOOD, heard=GOOD.heard[:1]),
    "a webhook of another change stands for the end": lambda: replace(GOOD, heard=[heard(6.0, "running", 4)]),
    "a webhook is not signed": lambda: with_heard(heard(9.2, job=None)),
    "a webhook goes to one who had not asked": lambda: with_heard(heard(13.0, "canceled", 3, OTHER)),
    "a webhook tells another state than the row had": lambda: with_heard(heard(9.2, "failed")),
    "a webhook calls the state by another name": lambda: with_heard(heard(9.2, type="job.failed")),
    "a webhook tells of a version that never was": lambda: with_heard(heard(9.2, version=6)),
    "a webhook comes before the change": lambda: with_heard(heard(4.9)),
    "a webhook shows too few images": lambda: with_heard(heard(9.2, images=0)),
    "a repeat says something else": lambda: with_heard(heard(9.2, sha256="other")),
    "two ends are heard": lambda: with_heard(heard(9.2, "canceled", 6)),
    "a webhook tells of a success after a cancel": lambda: with_heard(heard(13.0, "succeeded", 4, OTHER)),
    "a success follows a cancel": lambda: with_seen(seen(20, "cancel", 200)),
    "a client sees a crash": lambda: with_seen(seen(20, "poll", 500, code="internal")),
    "nobody says when to come back": lambda: with_seen(seen(20, "poll", 503, code="database_unavailable")),
    "Redis is away and a submit is refused": lambda: with_seen(
        seen(20, "submit", 503, None, code="broker_unavailable", retry_after="5")
    ),
    "a good submission is refused": lambda: with_seen(seen(20, "submit", 422, None, code="invalid_request")),
    "a client sees an older version": lambda: with_seen(seen(20, "poll", 200, state="running", version=2)),
    "a client sees what was not": lambda: with_seen(seen(20, "poll", 200, state="failed", version=5)),
    "a repeated submit makes a second job": lambda: with_seen(
        seen(20, "submit", 202, OTHER, key="a", state="canceled", version=3)
    ),
}

NAMED = {
    "an accepted job has no row": "lost",
    "a job waits for ever": "lost",
    "a job runs for ever": "lost",
    "a final state changes": "final_state_changed",
    "a finished job runs again": "final_state_changed",
    "a queued job succeeds": "forbidden_move",
    "a job begins in the middle": "forbidden_move",
    "a version is used twice": "version_not_grown",
    "a version falls": "version_not_grown",
    "a claim does not raise the attempt": "attempt_not_fenced",
    "an attempt changes hands without a claim": "attempt_not_fenced",
    "a job is tried too often": "too_many_attempts",
    "a job is given up too early": "given_up_early",
    "a job fails and nobody knows why": "failed_without_reason",
    "a good job fails": "failed_without_cause",
    "a poisoned job succeeds": "poison_succeeded",
    "two attempts are shown": "double_visible",
    "one image is shown twice": "double_visible",
    "a stale attempt is shown": "stale_result",
    "an image is missing from the result": "incomplete",
    "a success shows nothing": "incomplete",
    "a canceled job shows images": "shown_without_success",
    "images belong to no job": "shown_without_row",
    "an object is not there": "object_missing",
    "an object was overwritten": "object_differs",
    "a picture is made with another's weights": "wrong_checkpoint",
    "a picture is made with weights of two": "wrong_checkpoint",
    "a picture tells of another file": "wrong_receipt",
    "a picture tells of no file": "wrong_receipt",
    "a file is used long after it was replaced": "stale_weights",
    "a file is used before it was there": "stale_weights",
    "a checkpoint that is whole is called bad": "failed_without_cause",
    "a checkpoint that is whole is refused": "refused_without_need",
    "a client downloads another picture": "object_differs",
    "what a dead attempt stored is never swept": "left_behind",
    "a picture is swept away": "object_missing",
    "an end is told to nobody": "told_wrongly",
    "an end is told twice": "told_wrongly",
    "an end is told that was not": "told_wrongly",
    "a webhook never comes": "webhook_missing",
    "a webhook is refused and not repeated": "webhook_missing",
    "a webhook of another change stands for the end": "webhook_missing",
    "a webhook is not signed": "webhook_forged",
    "a webhook goes to one who had not asked": "webhook_unasked",
    "a webhook tells another state than the row had": "webhook_untrue",
    "a webhook calls the state by another name": "webhook_untrue",
    "a webhook tells of a version that never was": "webhook_untrue",
    "a webhook comes before the change": "webhook_early",
    "a webhook shows too few images": "webhook_incomplete",
    "a repeat says something else": "webhook_changed",
    "two ends are heard": "webhook_two_ends",
    "a webhook tells of a success after a cancel": "canceled_in_vain",
    "a success follows a cancel": "canceled_in_vain",
    "a client sees a crash": "crash_seen",
    "nobody says when to come back": "no_retry_after",
    "Redis is away and a submit is refused": "refused_without_need",
    "a good submission is refused": "refused_without_need",
    "a client sees an older version": "went_back_in_time",
    "a client sees what was not": "saw_what_was_not",
    "a repeated submit makes a second job": "submitted_twice",
}


def test_a_good_history_is_accepted() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_history_is_found_out(what: str) -> None:
    assert NAMED[what] in {violation.kind for violation in check(BROKEN[what]())}


def test_a_repeat_may_be_told_to_wait_for_a_try_that_is_still_on_its_way() -> None:
    told = seen(21, "submit", 409, None, key="b", code="submission_in_flight", retry_after="1")
    assert check(with_seen(seen(20, "submit", None, None, key="b"), told)) == []
    assert {one.kind for one in check(with_seen(told))} == {"refused_without_need"}


def test_a_job_that_used_up_its_attempts_may_fail() -> None:
    assert check(failed(faults=3, error_code="worker_lost", error_retryable=True)) == []


def test_jobs_of_a_bad_file_may_fail_and_be_refused() -> None:
    assert check(failed(faults=1, error_code="bad_checkpoint", error_retryable=False)) == []
    assert check(with_seen(seen(20, "submit", 422, None, code="checkpoint_refused", checkpoint="b"))) == []


def test_recovery_is_timed_from_the_fault_to_the_next_attempt_or_success() -> None:
    assert recoveries(GOOD) == {"gpu_kill": [1.5], "redis_kill": [0.5]}


def test_the_report_counts_and_prints() -> None:
    broken = BROKEN["a job waits for ever"]()
    loss = {"before": 1200.0, "after": 1150.0, "back_s": 4.2, "limit_s": 30.0}
    facts = {"seed": 1, "minutes": 0.1, "zombie_writes_refused": 2, "throughput_after_loss": loss}
    figures = report(broken, check(broken), **facts)
    assert (figures["jobs"], figures["faults"], figures["lost"], figures["double_visible"]) == (2, 2, 1, 0)
    assert figures["recovery_s"]["gpu_kill"] == {"p50": 1.5, "p95": 1.5, "max": 1.5, "n": 1}
    assert figures["orphans"] == 1
    assert figures["kill_recovery_s"]["p95"] == 1.5
    assert figures["webhooks"] == {
        "asked": 1,
        "arrived": 1,
        "repeats": 2,
        "refused": 1,
        "delay_s": {"p50": 4.0, "p95": 4.0, "max": 4.0, "n": 1},
    }
    assert "lost" in table(figures)
    assert "0.9 of it after 4.2 s" in table(figures)


def working(rate: float, begin: float, end: float, job: int) -> list[Version]:
    """A job whose worker reports ten times a second what it has done since."""
    reports = int((end - begin) * 10)
    about = {"version": 1, "state": "running", "attempt": 1, "faults": 0, "max_attempts": 3}
    return [
        Version(number, begin + number / 10, UUID(int=job), **about, steps=round(number * rate / 10))  # type: ignore[arg-type]
        for number in range(reports + 1)
    ]


def test_a_throughput_is_back_when_a_window_has_nine_tenths_of_what_it_was() -> None:
    """A thousand steps a second, a third of them lost at 100 s and back from 112 s on, or never."""
    others, lost = working(667, 70, 160, job=1), working(333, 70, 100, job=2)
    regained = working(333, 112, 160, job=3)
    back = judged([*others, *lost, *regained], killed=100.0, limit_s=30.0)
    assert (round(back.before), round(back.after), back.is_over) == (1000, 1000, True)
    assert back.back_s is not None
    assert 10 <= back.back_s <= 12
    never = judged([*others, *lost], killed=100.0, limit_s=30.0)
    assert (never.back_s, never.is_over) == (None, False)
    assert not judged([*others, *lost, *regained], killed=100.0, limit_s=5.0).is_over
