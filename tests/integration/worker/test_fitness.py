"""Workers that compute wrongly: found by their weights and their canary before a client sees a picture of theirs."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from celery import Celery
from redis import Redis
from sqlalchemy import select

from api.farm import checkpoints
from api.v1.workers import Workers, listing
from shared.errors import WorkerUnfit
from shared.fleet import registry
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.infra.tables import CanaryRow, JobRow
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary.states import JobState
from tests.support import studio
from tests.support.factories import DEMO, params
from tests.support.studio import DemoEngine
from tests.support.waiting import LIMIT_S
from worker import device
from worker.assembly import UNFIT_EXIT_STATUS
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.engine.runner import DiffusionRunner
from worker.health import canaries
from worker.health.canaries import CanaryResult
from worker.health.fitness import CANARY, Fitness, contradiction
from worker.residency.residency import Residency
from worker.slots.attempts import Attempts
from worker.slots.claim_gate import ClaimGate
from worker.slots.guarded_engine import GuardedEngine
from worker.slots.image_store import ImageStore
from worker.slots.leases import Leases
from worker.slots.open_checkpoints import OpenCheckpoints
from worker.slots.render import Renderer
from worker.slots.snapshots import Snapshots

WELL = CanaryResult("weights", bytes([100] * 48))
CLOSE = CanaryResult("weights", bytes([102] * 48))
WRONG = CanaryResult("weights", bytes([160] * 48))
FLIPPED = CanaryResult("flipped", WELL.picture)


@pytest.fixture
def loaded() -> LoadedCheckpoint:
    """A demo checkpoint of the test's own, to be damaged."""
    whole = studio.demo()
    return replace(whole, unet=copy.deepcopy(whole.unet))


@pytest.fixture
def residency(loaded: LoadedCheckpoint) -> Residency:
    return Residency(loaded)


@pytest.fixture
def engine(residency: Residency) -> Iterator[DemoEngine]:
    with studio.running(DiffusionRunner(residency)) as engine:
        yield engine


@pytest.fixture
def fitness(engine: DemoEngine, loaded: LoadedCheckpoint, residency: Residency, db: Database) -> Fitness:
    return Fitness(engine, device.proof(loaded, residency), db, "w", condemned(db), timeout_s=LIMIT_S)


@pytest.fixture
def worker(
    settings: Settings, db: Database, redis: Redis, celery: Celery, storage: Storage, fitness: Fitness
) -> Renderer:
    """What the slots of the worker do that is examined."""
    return renderer(settings, db, redis, celery, storage, fitness, Leases(db, settings, "w"))


def renderer(
    settings: Settings, db: Database, redis: Redis, celery: Celery, storage: Storage, fitness: Fitness, leases: Leases
) -> Renderer:
    return Renderer(
        Attempts(db, redis, celery, settings, opened=OpenCheckpoints(DEMO), worker_id="w"),
        GuardedEngine(fitness.engine, Snapshots(db, settings), fitness),
        ImageStore(storage, settings),
        leases,
        ClaimGate(16),
    )


def condemned(db: Database) -> Any:
    def condemn(reason: str) -> None:
        with db.transaction() as session:
            registry.mark_unfit(session, "w", reason)

    return condemn


def flip(loaded: LoadedCheckpoint) -> None:
    """Turn one bit of one weight of the UNet."""
    weight = next(loaded.unet.parameters()).data.view(torch.int32)
    weight[0, 0, 0, 0] ^= 1 << 29


@pytest.mark.parametrize(
    ("mine", "others", "is_new", "is_wrong"),
    [
        (WELL, [], True, False),
        (WELL, [CLOSE], True, False),
        (WRONG, [WELL], True, True),
        (FLIPPED, [WELL], True, True),
        (WELL, [WRONG], False, False),  # one word against another: who is at work stays
        (WELL, [WRONG, CLOSE], True, False),
        (WELL, [WRONG, WRONG], False, True),
        (WELL, [WRONG, WRONG, CLOSE], False, False),
    ],
)
def test_more_voices_win(mine: CanaryResult, others: list[CanaryResult], is_new: bool, is_wrong: bool) -> None:
    assert (contradiction(mine, others, is_new=is_new) is not None) is is_wrong


def test_any_flipped_bit_in_the_modules_is_noticed(loaded: LoadedCheckpoint, residency: Residency) -> None:
    assert residency.are_sound()
    flip(loaded)
    assert not residency.are_sound()


def test_a_well_worker_stays_well_and_shows_it(fitness: Fitness, db: Database) -> None:
    fitness.open()
    assert fitness.examine()
    fitness.vouch()
    with db.transaction() as session:
        shown = session.scalars(select(CanaryRow)).one()
    assert np.frombuffer(shown.picture, np.uint8).size == CANARY.passes[0].width * CANARY.passes[0].height * 3


def test_no_client_gets_a_picture_of_flipped_weights(
    settings: Settings, db: Database, storage: Storage, worker: Renderer, fitness: Fitness, loaded: LoadedCheckpoint
) -> None:
    with db.transaction() as session:
        registry.announce(session, worker_id="w", checkpoint=DEMO, size_bytes=1, hostname="h", device="d", slots=1)
        job_id = lifecycle.submit(session, params(num_images=2), max_attempts=1).id
    fitness.open()
    flip(loaded)
    worker.answer()
    with db.transaction() as session:
        job = lifecycle.get(session, job_id)
    # Handed back, by no fault of its own: the next worker renders it.
    assert (job.state, job.faults, job.images) == (JobState.QUEUED, 0, [])
    assert not storage_keys(storage, job)
    (seen,) = workers(settings, db).workers
    assert seen.unfit == "The weights in memory are no longer those that were loaded."
    with pytest.raises(WorkerUnfit):
        fitness.vouch()
    with db.transaction() as session:
        (served,) = checkpoints.checkpoints(session, silent_after_s=60)
    assert served.ready_workers == 0


@pytest.mark.parametrize("lasts", [False, True])
def test_after_an_error_of_the_device_the_canary_decides_whose_fault_it_was(
    settings: Settings, db: Database, worker: Renderer, fitness: Fitness, loaded: LoadedCheckpoint, lasts: bool
) -> None:
    with db.transaction() as session:
        registry.announce(session, worker_id="w", checkpoint=DEMO, size_bytes=1, hostname="h", device="d", slots=1)
        job_id = lifecycle.submit(session, params(), max_attempts=1).id
    fitness.open()
    calls: list[bool] = []

    def err(*_: object) -> None:
        calls.append(True)
        if lasts or len(calls) == 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with loaded.unet.register_forward_pre_hook(err):
        worker.answer()
    with db.transaction() as session:
        job = lifecycle.get(session, job_id)
    (seen,) = workers(settings, db).workers
    assert len(calls) > 1  # the canary was rendered
    if lasts:
        assert (job.state, job.faults) == (JobState.QUEUED, 0)
        assert seen.unfit
        assert seen.unfit.startswith("The canary could not be rendered")
    else:
        assert (job.state, job.error_code) == (JobState.FAILED, "render_failed")
        assert seen.unfit is None


@pytest.mark.parametrize("is_flipped", [False, True])
def test_no_other_worker_goes_on_from_what_flipped_weights_made(
    settings: Settings,
    db: Database,
    redis: Redis,
    celery: Celery,
    storage: Storage,
    fitness: Fitness,
    loaded: LoadedCheckpoint,
    is_flipped: bool,
) -> None:
    leases = Leases(db, settings, "w")
    worker = renderer(settings, db, redis, celery, storage, fitness, leases)
    with db.transaction() as session:
        job_id = lifecycle.submit(session, params(steps=150, width=256, height=256), max_attempts=1).id
    fitness.open()
    slot = Thread(target=worker.answer)
    slot.start()
    steps = 0
    while steps < 3:  # the engine's own work is what passes the time
        leases.beat()
        with db.transaction() as session:
            job = lifecycle.get(session, job_id)
        assert job.state in {JobState.QUEUED, JobState.RUNNING}
        steps = job.steps_done
    if is_flipped:
        flip(loaded)
    leases.drain()
    slot.join(LIMIT_S)
    with db.transaction() as session:
        assert lifecycle.get(session, job_id).state == JobState.QUEUED
    found = storage._client.list_objects_v2(Bucket=settings.s3_bucket, Prefix=f"snapshots/{job_id}").get("Contents", [])
    assert bool(found) is not is_flipped


def test_a_worker_that_starts_wrong_never_begins(fitness: Fitness, db: Database) -> None:
    with db.transaction() as session:
        canaries.record(session, fitness.proof.key("farm-demo"), "other", CanaryResult("flipped", b"?"))
    with pytest.raises(WorkerUnfit):
        fitness.open()


@pytest.mark.usefixtures("redis")
def test_a_worker_that_is_outvoted_leaves_with_an_error(settings: Settings, db: Database) -> None:
    """The real process: it serves, two others come to contradict it, and it takes itself out of service."""
    env = {
        **os.environ,
        "FARM_CHECKPOINT": str(studio.DEMO),
        "FARM_CANARY_SECONDS": "0.5",
        "FARM_PROFILE_SECONDS": "0",
        "FARM_DEVICE": "cpu",
        "FARM_DRAIN_SECONDS": "1",
    }
    command = [sys.executable, "-m", "celery", "-A", "worker.gpu", "worker", "--pool", "threads", "--concurrency", "1"]
    process = subprocess.Popen(
        [*command, "-n", "w@here"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not workers(settings, db).workers:
            assert process.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        with db.transaction() as session:
            key = session.scalars(select(CanaryRow.key)).one()
            for other in ("a", "b"):
                canaries.record(session, key, other, WRONG)
        assert process.wait(LIMIT_S) == UNFIT_EXIT_STATUS
    finally:
        process.kill()
        process.wait()
    (seen,) = workers(settings, db).workers
    assert seen.unfit == "The weights in memory are not those of the same file elsewhere."


def workers(settings: Settings, db: Database) -> Workers:
    desk: Any = SimpleNamespace(db=db, settings=settings)
    caller: Any = None
    return listing(desk, caller)


def storage_keys(storage: Storage, job: JobRow) -> list[str]:
    found = storage._client.list_objects_v2(Bucket=storage._bucket, Prefix=f"jobs/{job.id}")
    return [one["Key"] for one in found.get("Contents", [])]
