"""Checker: proves from a recorded history that no job was lost, duplicated or undone. Pure.

Each rule is a generator of violations; a history without violations of any rule passes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

from shared.vocabulary.states import TRANSITIONS, JobState
from tests.chaos.history import History, Seen, Version

OK, REFUSED, CRASHED, UNAVAILABLE = 200, 400, 500, 503
ACCEPTED = {200, 201, 202}
FINAL = {state for state in JobState if state.is_final}
# Whatever else is away, these are the only dependencies whose absence may refuse a request.
EXCUSES = {"database_unavailable", "storage_unavailable"}


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken."""

    kind: str
    detail: str
    job: UUID | None = None


Rule = Callable[[History], Iterator[Violation]]


def check(history: History) -> list[Violation]:
    """Return every broken promise."""
    return [violation for rule in RULES for violation in rule(history)]


def every_accepted_job_ends(history: History) -> Iterator[Violation]:
    """1: an answer of 202 is a promise, and so is a row."""
    jobs = history.by_job()
    accepted = {one.job for one in history.seen if one.act == "submit" and one.status in ACCEPTED and one.job}
    for job in accepted - jobs.keys():
        yield Violation("lost", "was accepted, but there is no row", job)
    for job, versions in jobs.items():
        if not JobState(versions[-1].state).is_final:
            yield Violation("lost", f"is {versions[-1].state} at the end", job)


def rows_move_as_states_allow(history: History) -> Iterator[Violation]:
    """1: final states never change, `version` only grows, and only the moves that `shared.vocabulary.states` draws are made."""
    for job, versions in history.by_job().items():
        if versions[0].state != JobState.QUEUED:
            yield Violation("forbidden_move", f"began as {versions[0].state}", job)
        for before, after in pairwise(versions):
            yield from _move(job, before, after)


def _move(job: UUID, before: Version, after: Version) -> Iterator[Violation]:
    old, new = JobState(before.state), JobState(after.state)
    visible = (old, before.attempt) != (new, after.attempt)
    if old.is_final and visible:
        yield Violation("final_state_changed", f"{old} became {new}", job)
    elif new != old and new not in TRANSITIONS[old]:
        yield Violation("forbidden_move", f"{old} became {new}", job)
    if after.version < before.version or (visible and after.version == before.version):
        yield Violation("version_not_grown", f"{before.version} became {after.version}", job)
    claimed = old is JobState.QUEUED and new is JobState.RUNNING
    if after.attempt - before.attempt != int(claimed):
        yield Violation("attempt_not_fenced", f"{old}, {before.attempt} became {new}, {after.attempt}", job)


def attempts_are_bounded(history: History) -> Iterator[Violation]:
    """5: a job is given up after `max_attempts` faults, with the reason, and not before."""
    for job, versions in history.by_job().items():
        last = versions[-1]
        if last.faults > last.max_attempts:
            yield Violation("too_many_attempts", f"{last.faults} faults of {last.max_attempts}", job)
        if last.state != JobState.FAILED:
            continue
        if last.error_code is None:
            yield Violation("failed_without_reason", "has no error code", job)
        elif last.error_code == "bad_checkpoint" and history.was_spoiled(
            history.checkpoints.get(job), versions[0].at, last.at
        ):
            continue
        elif not last.error_retryable:
            yield Violation("failed_without_cause", f"nothing here should fail with {last.error_code}", job)
        elif last.faults < last.max_attempts:
            yield Violation("given_up_early", f"{last.faults} faults of {last.max_attempts}", job)


def poison_is_isolated(history: History) -> Iterator[Violation]:
    """5: a job that kills its workers fails or is canceled."""
    for job, versions in history.by_job().items():
        if job in history.poisoned and versions[-1].state == JobState.SUCCEEDED:
            yield Violation("poison_succeeded", "a job that always kills its worker has succeeded", job)


def one_result_is_shown(history: History) -> Iterator[Violation]:
    """2: a job that succeeded shows one whole set of images, of the attempt that succeeded; no other job shows any."""
    shown = defaultdict(list)
    for image in history.shown:
        shown[image.job].append(image)
    for job, versions in history.by_job().items():
        last, images = versions[-1], shown.pop(job, [])
        if last.state != JobState.SUCCEEDED:
            if images:
                yield Violation("shown_without_success", f"is {last.state} and shows {len(images)} images", job)
            continue
        attempts = {int(image.key.split("/")[-2]) for image in images}
        if len(images) > len({image.index for image in images}) or len(attempts) > 1:
            yield Violation("double_visible", f"shows {len(images)} images of the attempts {sorted(attempts)}", job)
        elif attempts and attempts != {last.attempt}:
            yield Violation("stale_result", f"attempt {last.attempt} succeeded and {attempts} is shown", job)
        wanted = history.images_wanted.get(job, len(images) or 1)
        if len(images) != wanted:
            yield Violation("incomplete", f"shows {len(images)} of {wanted} images", job)
    for job in shown:
        yield Violation("shown_without_row", "shows images and has no row", job)


def shown_images_exist(history: History) -> Iterator[Violation]:
    """2: what is shown is stored, byte for byte, and nobody ever downloads anything else."""
    told = {}
    for image in history.shown:
        told[image.job, image.index] = image.sha256
        stored = history.objects.get(image.key)
        if stored is None:
            yield Violation("object_missing", f"{image.key} is not in the storage", image.job)
        elif stored != image.sha256:
            yield Violation("object_differs", f"{image.key} is not what was announced", image.job)
    for one in history.seen:
        if one.act == "fetch" and one.sha256 and one.job and one.sha256 != told.get((one.job, 0)):
            yield Violation("object_differs", "a client downloaded something else than is announced", one.job)


def pictures_are_of_the_checkpoint(history: History) -> Iterator[Violation]:
    """7: a picture is made with the weights of one file that lay under the name its job gave, and tells of that file."""
    jobs = history.by_job()
    for image in history.painted:
        name, versions = history.checkpoints.get(image.job), jobs.get(image.job)
        files = [one for one in history.laid if one.mark == image.mark]
        named = [one for one in files if one.checkpoint == name]
        if not named:
            whose = sorted({one.checkpoint for one in files}) or "no file"
            yield Violation("wrong_checkpoint", f"named {name} and shows the weights of {whose}", image.job)
        elif not any(image.told and one.sha256.startswith(image.told) for one in named):
            yield Violation("wrong_receipt", f"tells of {image.told or 'no file'}", image.job)
        elif versions and not any(one.began <= versions[-1].at and _claimed(versions) <= one.ended for one in named):
            yield Violation("stale_weights", "its file had been replaced when it was claimed", image.job)


def _claimed(versions: Sequence[Version]) -> float:
    """Return when a job's last attempt began."""
    return min(one.at for one in versions if one.attempt == versions[-1].attempt)


def only_what_is_shown_is_kept(history: History) -> Iterator[Violation]:
    """2: what attempts left behind that came to nothing is swept from the storage, and nothing else is."""
    if history.kept is None:
        return
    shown = {image.key: image.job for image in history.shown}
    for key in sorted(history.kept - shown.keys()):
        yield Violation("left_behind", f"{key} is still stored and nobody sees it")
    for key in sorted(shown.keys() - history.kept):
        yield Violation("object_missing", f"{key} was swept away", shown[key])


def every_end_is_told_once(history: History) -> Iterator[Violation]:
    """6: one event for each attempt that started and one for the end, with the version of the row that it tells of."""
    told = defaultdict(list)
    for event in history.told:
        told[event.job].append((event.version, event.type.removeprefix("job.")))
    for job, versions in history.by_job().items():
        happened = [(one.version, "started") for before, one in pairwise(versions) if one.attempt > before.attempt]
        happened += [(one.version, one.state) for one in versions if JobState(one.state).is_final][:1]
        if sorted(told[job]) != happened:
            yield Violation("told_wrongly", f"happened: {happened}, told: {sorted(told[job])}", job)


def every_end_is_heard(history: History) -> Iterator[Violation]:
    """6: whoever asked for a webhook of a job's end has got one, however often it or a courier was away."""
    heard = {(one.job, one.version) for one in history.heard if one.accepted}
    jobs = history.by_job()
    for job in history.hooked() & jobs.keys():
        ends = [one for one in jobs[job] if JobState(one.state).is_final]
        if ends and (job, ends[0].version) not in heard:
            yield Violation("webhook_missing", f"{ends[0].state} and its receiver does not know", job)


def what_is_heard_is_so(history: History) -> Iterator[Violation]:
    """6: a webhook is signed, was asked for, and says what the row was when it was sent, and not before."""
    rows: dict[tuple[UUID, int], Version] = {}
    for version in sorted(history.versions, key=lambda one: one.seq):
        rows.setdefault((version.job, version.version), version)
    hooked = history.hooked()
    for one in history.heard:
        row = rows.get((one.job, one.version)) if one.job else None
        if one.job is None:
            yield Violation("webhook_forged", f"{one.message} is not signed, or says nothing")
        elif one.job not in hooked:
            yield Violation("webhook_unasked", f"{one.type} was told to one who had not asked", one.job)
        elif row is None or (one.state, one.type) != (row.state, f"job.{row.state}"):
            yield Violation("webhook_untrue", f"{one.type}, {one.state} at version {one.version}", one.job)
        elif one.at < row.at:
            yield Violation("webhook_early", f"{one.type} came before it was so", one.job)
        elif row.state == JobState.SUCCEEDED and one.images != history.images_wanted.get(one.job, one.images):
            yield Violation("webhook_incomplete", f"tells of {one.images} images", one.job)


def one_end_is_heard(history: History) -> Iterator[Violation]:
    """6: repeats are the same message, byte for byte, and no two messages tell of different ends."""
    bodies, ends = defaultdict(set), defaultdict(set)
    for one in history.heard:
        bodies[one.message].add(one.sha256)
        if one.job is not None and one.state in FINAL:
            ends[one.job].add((one.message, one.state))
    for message, digests in bodies.items():
        if len(digests) > 1:
            yield Violation("webhook_changed", f"{message} came with {len(digests)} bodies")
    for job, told in ends.items():
        if len(told) > 1:
            yield Violation("webhook_two_ends", f"its receiver heard of {sorted(told)}", job)


def no_success_follows_a_cancel(history: History) -> Iterator[Violation]:
    """3: an acknowledged cancel is the end, to receivers of webhooks too."""
    jobs = history.by_job()
    cheered = {one.job for one in history.heard if one.state == JobState.SUCCEEDED}
    for one in history.seen:
        if one.act == "cancel" and one.status == OK and one.job in jobs:
            last = jobs[one.job][-1]
            if last.state != JobState.CANCELED:
                yield Violation("canceled_in_vain", f"the cancel was acknowledged; it {last.state}", one.job)
            if one.job in cheered:
                yield Violation(
                    "canceled_in_vain", "the cancel was acknowledged; a webhook tells of a success", one.job
                )


def clients_see_no_crash(history: History) -> Iterator[Violation]:
    """4: whatever is away, the answer is a 503 that says when to come back, and never because of Redis."""
    unanswered = {one.key for one in history.seen if one.act == "submit" and one.status is None}
    for one in history.seen:
        # An earlier try of which the client heard nothing may still be on its way; the same key must wait for it.
        is_early = one.code == "submission_in_flight" and one.key in unanswered and one.retry_after
        # One of a checkpoint that no worker can load just now.
        is_bad = one.code == "checkpoint_refused" and history.was_spoiled(one.checkpoint, one.began, one.ended)
        is_excused = is_early or is_bad
        if one.act == "submit" and one.status is not None and REFUSED <= one.status < CRASHED and not is_excused:
            yield Violation("refused_without_need", f"a good submission was answered {one.status} {one.code}", one.job)
        if one.status is None or one.status < CRASHED or one.act == "fetch":
            continue
        if one.status != UNAVAILABLE:
            yield Violation("crash_seen", f"{one.act} answered {one.status} {one.code}", one.job)
        elif not one.retry_after:
            yield Violation("no_retry_after", f"{one.act} answered 503 {one.code}", one.job)
        elif one.code not in EXCUSES:
            yield Violation("refused_without_need", f"{one.act} answered 503 {one.code}", one.job)


def clients_see_time_pass(history: History) -> Iterator[Violation]:
    """1: to any one client a job's version never falls, and what it sees at a version is what the row was."""
    rows = {(one.job, one.version): one.state for one in sorted(history.versions, key=lambda one: one.seq)}
    latest: dict[tuple[int, UUID], Seen] = {}
    for one in sorted(history.seen, key=lambda one: (one.client, one.order)):
        if one.job is None or one.version is None:
            continue
        before = latest.get((one.client, one.job))
        if before is not None and (one.version < (before.version or 0)):
            yield Violation("went_back_in_time", f"version {before.version}, then {one.version}", one.job)
        if (one.job, one.version) in rows and rows[one.job, one.version] != one.state:
            yield Violation("saw_what_was_not", f"{one.state} at version {one.version}", one.job)
        latest[one.client, one.job] = one


def one_key_is_one_job(history: History) -> Iterator[Violation]:
    """1: however often a submit is repeated, it is one job."""
    jobs = defaultdict(set)
    for one in history.seen:
        if one.act == "submit" and one.key and one.job and one.status in ACCEPTED:
            jobs[one.key].add(one.job)
    for key, made in jobs.items():
        if len(made) > 1:
            yield Violation("submitted_twice", f"{key} became {len(made)} jobs", min(made))


RULES: tuple[Rule, ...] = (
    every_accepted_job_ends,
    rows_move_as_states_allow,
    attempts_are_bounded,
    poison_is_isolated,
    one_result_is_shown,
    shown_images_exist,
    pictures_are_of_the_checkpoint,
    only_what_is_shown_is_kept,
    every_end_is_told_once,
    every_end_is_heard,
    what_is_heard_is_so,
    one_end_is_heard,
    no_success_follows_a_cancel,
    clients_see_no_crash,
    clients_see_time_pass,
    one_key_is_one_job,
)
