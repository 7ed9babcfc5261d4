"""Jobs that are interrupted in the middle of a render and go on at another worker, with the same pictures in the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from uuid import UUID

import pytest
import torch
from celery import Celery
from redis import Redis

from shared.errors import ObjectMissing
from shared.infra.db import Database
from shared.infra.storage import Storage, snapshot_key
from shared.infra.tables import JobRow
from shared.jobs import lifecycle, rescue
from shared.settings import Settings
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.samplers import Sampler, Schedule
from shared.vocabulary.states import JobState
from tests.support import studio
from tests.support.factories import DEMO, hires
from tests.support.jobs import row, submit
from tests.support.studio import DemoEngine
from tests.support.waiting import LIMIT_S
from worker.courier import maintenance
from worker.engine.draft import ImageDraft
from worker.engine.runner import DiffusionRunner
from worker.health.fitness import Unexamined
from worker.slots.attempts import Attempts
from worker.slots.claim_gate import ClaimGate
from worker.slots.guarded_engine import GuardedEngine
from worker.slots.image_store import ImageStore
from worker.slots.leases import Leases
from worker.slots.open_checkpoints import OpenCheckpoints
from worker.slots.render import Renderer
from worker.slots.snapshots import Snapshots

LONG = {"steps": 24, "width": 64, "height": 64, "sampler": Sampler.DPMPP_2M_SDE}
HIRES = hires(width=96, height=96, steps=8, sampler=Sampler.UNIPC, schedule=Schedule.KARRAS, prompt="a blue circle")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[DemoEngine, DemoEngine]]:
    torch.set_num_threads(1)
    with (
        studio.running(DiffusionRunner.of(studio.demo(), strict_samples=4), samples=4) as one,
        studio.running(DiffusionRunner.of(studio.demo(), strict_samples=4), samples=4) as other,
    ):
        yield one, other


class Worker:
    """A worker without Celery."""

    def __init__(
        self,
        name: str,
        engine: DemoEngine,
        settings: Settings,
        db: Database,
        redis: Redis,
        celery: Celery,
        *,
        shelf: Storage | None = None,
    ) -> None:
        self.db = db
        self.engine = engine
        self.leases = Leases(db, settings, name)
        self.renderer = Renderer(
            Attempts(db, redis, celery, settings, opened=OpenCheckpoints(DEMO), worker_id=name),
            GuardedEngine(engine, Snapshots(db, settings, storage=shelf), Unexamined()),
            ImageStore(Storage(settings), settings),
            self.leases,
            ClaimGate(16),
        )

    def begin(self) -> Thread:
        slot = Thread(target=self.renderer.answer)
        slot.start()
        return slot

    def row(self, job_id: UUID) -> JobRow:
        return row(self.db, job_id)

    @contextmanager
    def held_at(self, steps: int) -> Iterator[Thread]:
        """Begin the next job, and keep it from going on while the block lasts once so many of its steps are done."""
        with studio.held(self.engine, lambda: sum(one.steps_done for one in self.leases.running()) >= steps) as is_held:
            slot = self.begin()
            assert is_held.wait(LIMIT_S)
            yield slot

    def drain_at(self, job_id: UUID, steps: int) -> JobRow:
        """Begin the job, which is next, and be drained once so many steps are done."""
        with self.held_at(steps) as slot:
            self.leases.drain()
        slot.join(timeout=LIMIT_S)
        return self.row(job_id)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"snapshot_seconds": 0})


@pytest.fixture
def parts(settings: Settings, db: Database, redis: Redis, celery: Celery) -> tuple[Settings, Database, Redis, Celery]:
    return settings, db, redis, celery


Parts = tuple[Settings, Database, Redis, Celery]
Engines = tuple[DemoEngine, DemoEngine]


def submit_long(db: Database, **changes: object) -> UUID:
    return submit(db, max_attempts=3, **{**LONG, **changes})


def digests(row: JobRow) -> list[str]:
    assert row.state == JobState.SUCCEEDED, row.error_message
    return [image.sha256 for image in row.images]


def undisturbed(worker: Worker, **changes: object) -> list[str]:
    job_id = submit_long(worker.db, **changes)
    worker.renderer.answer()
    return digests(worker.row(job_id))


def test_a_drained_job_goes_on_elsewhere_and_ends_the_same(parts: Parts, pair: Engines) -> None:
    one, other = (Worker(name, engine, *parts) for name, engine in zip("ab", pair, strict=True))
    expected = undisturbed(other, hires=HIRES)
    job_id = submit_long(one.db, hires=HIRES)
    back = one.drain_at(job_id, 12)
    assert (back.state, back.snapshot_attempt) == (JobState.QUEUED, 1)
    other.renderer.answer()
    done = other.row(job_id)
    assert digests(done) == expected
    assert done.attempt == 2
    assert done.resumed_from_step >= 12


class Later(GenerationParams):
    """What the next release may know of a job."""

    of_late: int | None = None


def test_a_job_goes_on_in_a_release_that_knows_a_parameter_more(
    parts: Parts, pair: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Worker(name, engine, *parts) for name, engine in zip("ab", pair, strict=True))
    job_id = submit_long(one.db)
    one.drain_at(job_id, 12)
    monkeypatch.setattr(lifecycle, "GenerationParams", Later)
    other.renderer.answer()
    done = other.row(job_id)
    assert done.state == JobState.SUCCEEDED
    assert done.resumed_from_step >= 12


def test_images_that_were_done_are_not_denoised_again(parts: Parts, pair: Engines) -> None:
    one, other = (Worker(name, engine, *parts) for name, engine in zip("ab", pair, strict=True))
    expected = undisturbed(other, num_images=3, steps=16)
    before = sum(engine.pace.image_steps for engine in pair)
    job_id = submit_long(one.db, num_images=3, steps=16)
    assert one.drain_at(job_id, 36).state == JobState.QUEUED  # of 48, two images a call: the first two are done
    other.renderer.answer()
    done = other.row(job_id)
    assert digests(done) == expected
    while any(engine.seconds_stuck for engine in pair):
        pass  # the last tick is counted after its picture is handed out
    made = sum(engine.pace.image_steps for engine in pair) - before
    assert done.steps_total <= made <= done.steps_total + 3  # a step that was under way at the drain is made again


def test_a_lost_workers_job_goes_on_from_what_it_kept_meanwhile(parts: Parts, pair: Engines, storage: Storage) -> None:
    settings, *rest = parts
    often = settings.model_copy(update={"snapshot_seconds": 0.001})
    one, other = (Worker(name, engine, often, *rest) for name, engine in zip("ab", pair, strict=True))
    expected = undisturbed(other)
    job_id = submit_long(one.db)
    with one.held_at(8) as slot:
        while not storage.keys(snapshot_key(job_id, 1)):  # the row is written first
            pass
        with one.db.transaction() as session:  # as when the process of worker a had been killed and came back
            assert rescue.take_over(session, "a") == [(job_id, JobState.QUEUED)]
    other.renderer.answer()  # beside the zombie
    slot.join(timeout=LIMIT_S)
    done = other.row(job_id)
    assert digests(done) == expected
    assert done.attempt == 2
    assert done.resumed_from_step > 0


def test_a_stale_attempt_does_not_touch_a_newer_ones_snapshot(db: Database) -> None:
    job_id = submit_long(db)
    with db.transaction() as session:
        old = lifecycle.claim_next(session, DEMO, "a", lease_s=20)
    assert old is not None
    with db.transaction() as session:
        assert lifecycle.note_snapshot(session, old)
        assert lifecycle.release(session, old)
        new = lifecycle.claim_next(session, DEMO, "b", lease_s=20)
    assert new is not None
    assert (new.attempt, new.snapshot_attempt) == (2, 1)
    with db.transaction() as session:
        assert lifecycle.note_snapshot(session, new)
        assert not lifecycle.note_snapshot(session, old)
        assert not lifecycle.resume(session, old, 3)
        assert lifecycle.get(session, job_id).snapshot_attempt == 2
    assert snapshot_key(job_id, 1) != snapshot_key(job_id, 2)


@pytest.mark.parametrize("fault", ["cut", "flipped", "gone", "other checkpoint", "other job"])
def test_what_cannot_be_trusted_is_rendered_anew(
    fault: str, parts: Parts, pair: Engines, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Worker("a", pair[0], *parts)
    other = Worker("b", pair[1], *parts)
    expected = undisturbed(other, steps=10)
    job_id = submit_long(one.db, steps=10)
    one.drain_at(job_id, 2)
    key = snapshot_key(job_id, 1)
    data = storage.get(key)
    if fault == "cut":
        storage.put(key, data[:-9], content_type="")
    elif fault == "flipped":
        storage.put(key, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], content_type="")
    elif fault == "other checkpoint":
        monkeypatch.setattr(ImageDraft, "weights", "others")
    elif fault == "gone":
        storage.delete(key)
    elif fault == "other job":
        foreign = submit_long(one.db, steps=10)
        with one.db.transaction() as session:  # out of the way, so that the other one is next
            lifecycle.cancel(session, job_id)
        one.drain_at(foreign, 2)
        storage.put(snapshot_key(foreign, 1), data, content_type="")
        job_id = foreign
    other.renderer.answer()
    done = other.row(job_id)
    assert digests(done) == expected
    assert done.resumed_from_step == 0


def test_a_storage_that_is_away_costs_the_snapshot_and_not_the_job(parts: Parts, pair: Engines) -> None:
    settings, *rest = parts
    often = settings.model_copy(update={"snapshot_seconds": 0.001})
    away = Storage(often.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"}), tries=1)
    one, other = (Worker(name, engine, often, *rest, shelf=away) for name, engine in zip("ab", pair, strict=True))
    expected = undisturbed(other, steps=10)
    job_id = submit_long(one.db, steps=10)
    assert one.drain_at(job_id, 2).state == JobState.QUEUED
    other.renderer.answer()
    done = other.row(job_id)
    assert digests(done) == expected
    assert (done.faults, done.resumed_from_step) == (0, 0)


def test_what_was_kept_is_swept_after_the_end(parts: Parts, pair: Engines, storage: Storage) -> None:
    one = Worker("a", pair[0], *parts)
    job_id = submit_long(one.db, steps=10)
    one.drain_at(job_id, 2)
    storage.get(snapshot_key(job_id, 1))
    assert maintenance.sweep_snapshots(one.db, storage) == 0  # it has not ended
    with one.db.transaction() as session:
        lifecycle.cancel(session, job_id)
        row = lifecycle.get(session, job_id)
        assert row.finished_at is not None
        row.finished_at -= 2 * rescue.LATE_WRITE
    assert maintenance.sweep_snapshots(one.db, storage) == 1
    with pytest.raises(ObjectMissing):
        storage.get(snapshot_key(job_id, 1))
    assert one.row(job_id).snapshot_attempt is None
