"""A worker's slot end to end: real database, Redis, storage and engine with the demo checkpoint; only Celery is left out."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from uuid import UUID

import numpy as np
import pytest
from celery import Celery
from PIL import Image
from redis import Redis
from sqlalchemy import update
from sqlalchemy.orm import Session

from shared.errors import DatabaseUnavailable, RenderFailed, StorageUnavailable
from shared.files import pictures
from shared.infra import previews
from shared.infra.db import Database
from shared.infra.events import JobEvent, Listener, publish
from shared.infra.storage import Storage, input_key
from shared.infra.tables import JobRow
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary.params import Inpaint, Lora, MaskFill
from shared.vocabulary.states import JobState
from tests.support import factories, studio
from tests.support.bad_store import bad_store
from tests.support.factories import DEMO, params
from tests.support.studio import DemoEngine
from worker.diffusion.safety import SafetyChecker
from worker.engine.runner import DiffusionRunner
from worker.health.fitness import Unexamined
from worker.slots import png
from worker.slots.attempts import Attempts
from worker.slots.claim_gate import ClaimGate
from worker.slots.guarded_engine import GuardedEngine
from worker.slots.image_store import ImageStore
from worker.slots.leases import Leases, RunningJob
from worker.slots.open_checkpoints import OpenCheckpoints
from worker.slots.outcomes import Superseded
from worker.slots.previews import PreviewPublisher
from worker.slots.render import Renderer
from worker.slots.snapshots import Snapshots


@pytest.fixture(scope="module")
def engine() -> Iterator[DemoEngine]:
    with studio.running(DiffusionRunner.of(studio.demo())) as engine:
        yield engine


class Worker:
    """One worker without Celery."""

    def __init__(self, settings: Settings, db: Database, redis: Redis, celery: Celery, engine: DemoEngine) -> None:
        self.db = db
        self.leases = Leases(db, settings, "w")
        self.attempts = Attempts(db, redis, celery, settings, opened=OpenCheckpoints(DEMO), worker_id="w")
        self.images = ImageStore(Storage(settings), settings)
        guarded = GuardedEngine(engine, Snapshots(db, settings), Unexamined())
        self.renderer = Renderer(self.attempts, guarded, self.images, self.leases, ClaimGate(16))

    def submit(self, **changes: object) -> UUID:
        with self.db.transaction() as session:
            return lifecycle.submit(session, params(**changes), max_attempts=3).id

    def row(self, job_id: UUID) -> JobRow:
        with self.db.transaction() as session:
            return lifecycle.get(session, job_id)

    def answer_in_background(self) -> Thread:
        thread = Thread(target=self.renderer.answer)
        thread.start()
        return thread

    def beat_until(self, job_id: UUID, steps: int) -> None:
        """Report progress until the row shows that many steps. The engine's own work is what passes the time."""
        while self.row(job_id).steps_done < steps:
            self.leases.beat()
            assert self.row(job_id).state in {JobState.QUEUED, JobState.RUNNING}


def stored_input(storage: Storage, data: bytes) -> str:
    """Store a client's picture and return its key."""
    key = input_key(hashlib.sha256(data).hexdigest())
    storage.put(key, data, content_type="image/png")
    return key


@pytest.fixture
def worker(settings: Settings, db: Database, redis: Redis, celery: Celery, engine: DemoEngine) -> Worker:
    return Worker(settings, db, redis, celery, engine)


def test_one_doorbell_renders_one_job(worker: Worker, storage: Storage) -> None:
    job_id, waiting = worker.submit(num_images=2, seed=7), worker.submit()
    worker.renderer.answer()
    done = worker.row(job_id)
    assert done.state == JobState.SUCCEEDED
    assert [(image.index, image.seed) for image in done.images] == [(0, 7), (1, 8)]
    assert worker.row(waiting).state == JobState.QUEUED
    picture = Image.open(io.BytesIO(storage.get(done.images[1].key)))
    assert (picture.size, picture.format) == ((64, 64), "PNG")
    assert "Seed: 8" in picture.info["parameters"]


def test_a_stale_doorbell_is_ignored(worker: Worker) -> None:
    worker.renderer.answer()


def test_the_same_seed_gives_the_same_bytes(worker: Worker) -> None:
    ids = [worker.submit(seed=3) for _ in range(2)]
    for _ in ids:
        worker.renderer.answer()
    assert len({worker.row(job_id).images[0].sha256 for job_id in ids}) == 1


def test_a_canceled_job_stops_at_the_next_step(worker: Worker) -> None:
    job_id = worker.submit(steps=150, width=512, height=512)
    slot = worker.answer_in_background()
    worker.beat_until(job_id, 1)
    with worker.db.transaction() as session:
        lifecycle.cancel(session, job_id)
    worker.leases.hear(JobEvent(job_id, JobState.CANCELED))
    slot.join(timeout=30)
    assert not slot.is_alive()
    ended = worker.row(job_id)
    assert ended.state == JobState.CANCELED
    assert ended.steps_done < 150
    assert ended.images == []


def test_a_cancel_that_nobody_told_is_found_by_the_heartbeat(worker: Worker) -> None:
    job_id = worker.submit(steps=150, width=512, height=512)
    slot = worker.answer_in_background()
    worker.beat_until(job_id, 1)
    with worker.db.transaction() as session:
        lifecycle.cancel(session, job_id)
    while slot.is_alive():
        worker.leases.beat()
        slot.join(timeout=0.05)
    assert worker.row(job_id).state == JobState.CANCELED


def test_events_reach_listeners(worker: Worker, redis: Redis) -> None:
    heard: list[JobEvent] = []
    listener = Listener(redis, heard.append)
    listener.start()
    try:
        while not redis.pubsub_numsub("farm:events")[0][1]:
            pass
        job_id = worker.submit()
        worker.renderer.answer()
        while len(heard) < 2:
            pass
    finally:
        listener.stop()
    assert [(event.job_id, event.state) for event in heard] == [
        (job_id, JobState.RUNNING),
        (job_id, JobState.SUCCEEDED),
    ]


def test_draining_hands_the_job_back(worker: Worker) -> None:
    job_id = worker.submit(steps=150, width=512, height=512)
    slot = worker.answer_in_background()
    worker.beat_until(job_id, 1)
    worker.renderer.drain()
    worker.leases.drain()
    slot.join(timeout=30)
    back = worker.row(job_id)
    assert (back.state, back.faults, back.steps_done) == (JobState.QUEUED, 0, 0)
    worker.renderer.answer()
    assert worker.row(job_id).state == JobState.QUEUED  # a draining worker claims nothing


def test_nothing_succeeds_that_the_store_took_and_did_not_keep(settings: Settings, worker: Worker) -> None:
    with bad_store(settings) as store:
        store.keeps_nothing = True
        worker.images._settings = settings.model_copy(update={"upload_seconds": 0})
        worker.images._storage = Storage(store.settings)
        job_id = worker.submit()
        worker.renderer.answer()
    back = worker.row(job_id)
    assert (back.state, back.error_code, back.images) == (JobState.QUEUED, "object_damaged", [])


def test_a_picture_that_is_damaged_on_its_way_is_stored_again(settings: Settings, worker: Worker) -> None:
    with bad_store(settings) as store:
        store.damages_puts = 1
        worker.images._storage = Storage(store.settings)
        job_id = worker.submit()
        worker.renderer.answer()
        assert store.damages_puts == 0
    done = worker.row(job_id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    assert Storage(settings).get_whole(done.images[0].key, sha256=done.images[0].sha256)


def test_a_storage_failure_is_retried_later(settings: Settings, worker: Worker) -> None:
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1", "upload_seconds": 0})
    worker.images._storage, worker.images._settings = Storage(away), away
    job_id = worker.submit()
    worker.renderer.answer()
    back = worker.row(job_id)
    assert (back.state, back.error_code, back.faults) == (JobState.QUEUED, "storage_unavailable", 1)


class Shaky(Storage):
    """Refuses the first calls, then works."""

    def __init__(self, settings: Settings, failures: int) -> None:
        super().__init__(settings)
        self.failures = failures
        self.refused = Event()

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        if self.failures > 0:
            self.failures -= 1
            self.refused.set()
            raise StorageUnavailable
        super().put(key, data, content_type=content_type)


def test_what_is_rendered_outlives_a_storage_that_is_away_for_a_while(settings: Settings, worker: Worker) -> None:
    worker.images._storage = Shaky(settings, failures=2)
    job_id = worker.submit()
    worker.renderer.answer()
    done = worker.row(job_id)
    assert (done.state, done.attempt, done.faults) == (JobState.SUCCEEDED, 1, 0)


def test_a_worker_that_cannot_store_drains_all_the_same(settings: Settings, worker: Worker) -> None:
    storage = Shaky(settings, failures=10**9)
    worker.images._storage = storage
    job_id = worker.submit()
    slot = worker.answer_in_background()
    assert storage.refused.wait(30)
    worker.leases.beat()
    worker.leases.drain()
    slot.join(timeout=30)
    assert (worker.row(job_id).state, worker.row(job_id).faults) == (JobState.QUEUED, 0)


def test_a_finished_job_waits_for_the_database(settings: Settings, worker: Worker) -> None:
    """The first answers of the database are lost before, the next after the commit: the pictures are published once."""
    away = Away(settings, before=1, after=1)
    job_id = worker.submit()
    claim = worker.attempts.claim()
    assert claim is not None
    worker.attempts._db = away
    worker.renderer._run(claim)
    away.close()
    assert (worker.row(job_id).state, len(worker.row(job_id).images)) == (JobState.SUCCEEDED, 1)
    assert (away.before, away.after) == (0, 0)


def test_what_a_late_attempt_writes_is_superseded(worker: Worker) -> None:
    job_id = worker.submit()
    claim = worker.attempts.claim()
    assert claim is not None
    with worker.db.transaction() as session:
        lifecycle.cancel(session, job_id)
    late = RunningJob(claim)
    assert worker.attempts.succeed(late, []) == Superseded()
    assert worker.attempts.fail(late, RenderFailed()) == Superseded()
    worker.attempts.release(late)
    assert worker.row(job_id).state == JobState.CANCELED


def test_an_attempt_that_failed_says_whether_another_follows(worker: Worker) -> None:
    outcomes = []
    job_id = worker.submit()
    for error in (StorageUnavailable(), RenderFailed()):
        with worker.db.transaction() as session:
            session.execute(update(JobRow).values(not_before=None))
        claim = worker.attempts.claim()
        assert claim is not None
        outcomes.append(worker.attempts.fail(RunningJob(claim), error))
    assert [outcome.label for outcome in outcomes] == ["retried", "failed"]
    assert worker.row(job_id).state == JobState.FAILED


class Away(Database):
    """Loses the connection before some transactions begin, and after others have committed."""

    def __init__(self, settings: Settings, *, before: int, after: int) -> None:
        super().__init__(settings, pool_size=1)
        self.before, self.after = before, after

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        if self.before > 0:
            self.before -= 1
            raise DatabaseUnavailable
        with super().transaction() as session:
            yield session
        if self.after > 0:
            self.after -= 1
            raise DatabaseUnavailable


def test_a_job_that_lost_many_workers_waits_until_it_is_alone(worker: Worker) -> None:
    companion = worker.submit(steps=150, width=512, height=512)
    beside = worker.answer_in_background()
    worker.beat_until(companion, 1)
    suspect, later = worker.submit(), worker.submit()
    with worker.db.transaction() as session:
        session.execute(update(JobRow).where(JobRow.id == suspect).values(losses=9))
    slots = [worker.answer_in_background()]
    while worker.row(suspect).state != JobState.RUNNING:
        pass
    slots.append(worker.answer_in_background())
    while not (held := [one for one in worker.leases.running() if one.claim.job_id == suspect]):
        pass  # the row is written first
    (waiting,) = held
    worker.beat_until(companion, worker.row(companion).steps_done + 1)
    assert waiting.requests == []
    assert worker.row(later).state == JobState.QUEUED
    with worker.db.transaction() as session:
        lifecycle.cancel(session, companion)
    worker.leases.hear(JobEvent(companion, JobState.CANCELED))
    for slot in (beside, *slots):
        slot.join(timeout=30)
    assert {worker.row(one).state for one in (suspect, later)} == {JobState.SUCCEEDED}


def test_a_garbled_event_does_not_deafen_the_listener(redis: Redis) -> None:
    heard: list[JobEvent] = []
    listener = Listener(redis, heard.append)
    listener.start()
    event = JobEvent(UUID(int=1), JobState.CANCELED, 3)
    try:
        while not redis.publish("farm:events", "{garbled"):
            pass
        while not heard:
            publish(redis, event)
    finally:
        listener.stop()
    assert heard[0] == event


def test_img2img_inpainting_and_hires_through_the_whole_slot(worker: Worker, storage: Storage) -> None:
    """Init image and mask come from the storage; sizes, seeds and progress of what comes back are the job's."""
    noise = np.random.default_rng(2).integers(0, 255, (96, 80, 3), dtype=np.uint8)
    half = np.zeros((96, 80), dtype=np.uint8)
    half[:, :40] = 255
    init_image = stored_input(storage, png.encode(noise, {}))
    mask_image = stored_input(storage, pictures.to_png(Image.fromarray(half)))
    painting = Inpaint(mask_blur=0, mask_fill=MaskFill.NOISE, mask_invert=False, only_masked=True, padding=4)
    hires = factories.hires(height=96)
    init = {"kind": "img2img", "init_image": init_image, "strength": 0.6}
    jobs_asked = [
        worker.submit(**init, upscale=2.0),
        worker.submit(**init, mask_image=mask_image, inpaint=painting),
        worker.submit(hires=hires),
    ]
    for _ in jobs_asked:
        worker.renderer.answer()
    done = [worker.row(job_id) for job_id in jobs_asked]
    assert [row.state for row in done] == [JobState.SUCCEEDED] * 3, [row.error_message for row in done]
    assert [(row.images[0].width, row.images[0].height) for row in done] == [(128, 128), (80, 96), (128, 96)]
    assert [(row.steps_done, row.steps_total) for row in done] == [(3, 3), (3, 3), (7, 7)]
    painted = np.asarray(Image.open(io.BytesIO(storage.get(done[1].images[0].key))))
    assert (painted[:, 40:] == noise[:, 40:]).all()
    assert (painted[:, :40] != noise[:, :40]).any()


def test_an_init_image_that_comes_damaged_is_asked_for_again(settings: Settings, worker: Worker) -> None:
    noise = np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    init_image = stored_input(Storage(settings), png.encode(noise, {}))
    job_id = worker.submit(kind="img2img", init_image=init_image, strength=0.5)
    with bad_store(settings) as store:
        store.cuts_gets, store.cut_prefix = 1, "inputs/"
        worker.images._storage = Storage(store.settings)
        worker.renderer.answer()
        assert store.cuts_gets == 0
    assert worker.row(job_id).state == JobState.SUCCEEDED


def test_an_init_image_that_is_gone_fails_the_job(worker: Worker) -> None:
    job_id = worker.submit(kind="img2img", init_image=input_key("0" * 64), strength=0.5)
    worker.renderer.answer()
    assert worker.row(job_id).error_code == "object_missing"


def test_a_lora_that_this_worker_does_not_have_is_another_workers(worker: Worker) -> None:
    job_id = worker.submit(loras=(Lora(name="gone", weight=1.0, text_encoder_weight=1.0),))
    worker.renderer.answer()
    back = worker.row(job_id)
    assert (back.state, back.error_code) == (JobState.QUEUED, "weights_missing")
    assert "gone" in (back.error_message or "")


def test_previews_of_a_running_job_are_shown(worker: Worker, redis: Redis) -> None:
    job_id = worker.submit(steps=150, width=512, height=512)
    slot = worker.answer_in_background()
    showing = PreviewPublisher(redis, worker.leases.running)
    while (jpeg := previews.get(redis, job_id, 0)) is None:
        showing.renew()
    with worker.db.transaction() as session:
        lifecycle.cancel(session, job_id)
    worker.leases.hear(JobEvent(job_id, JobState.CANCELED))
    slot.join(timeout=30)
    assert Image.open(io.BytesIO(jpeg)).size == (256, 256)


def test_a_flagged_picture_is_delivered_black_and_marked(worker: Worker, storage: Storage) -> None:
    worker.images._safety = Wary()
    job_id = worker.submit()
    worker.renderer.answer()
    (image,) = worker.row(job_id).images
    assert image.flagged
    assert Image.open(io.BytesIO(storage.get(image.key))).getextrema() == ((0, 0),) * 3


class Wary(SafetyChecker):
    """Flags everything."""

    def __init__(self) -> None: ...

    def flags(self, _pixels: object) -> bool:
        return True
