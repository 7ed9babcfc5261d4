"""A gpu worker with a folder of checkpoints: it renders from every one, each picture with the right weights."""

import hashlib
import os
import random
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from celery import Celery
from PIL import Image
from redis import Redis
from sqlalchemy import select

from api.cli.app import main
from shared.fleet.weights_bucket import PREFIX
from shared.infra import large_objects
from shared.infra.db import Database
from shared.infra.storage import Storage
from shared.infra.tables import HoldingRow, ImageRow, JobRow, WorkerRow
from shared.jobs import lifecycle
from shared.settings import Settings
from shared.vocabulary.holdings import Tier
from shared.vocabulary.params import GenerationParams, Upscaler
from shared.vocabulary.states import JobState
from tests.support import recolored
from tests.support.factories import hires, params
from tests.support.recolored import Pixels
from tests.support.waiting import LIMIT_S, until
from worker import assembly
from worker.assembly import GpuWorker

SLOTS = 4
# `make shuffle` renders a thousand.
JOBS = int(os.environ.get("SHUFFLED_JOBS", "40"))
KINDS, KINDS_IN_RAM, LOADED_BYTES = min(40, JOBS // 5), 5, 24 * 10**6


class Pool:
    """Slots that nobody rings: they find jobs by looking."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(SLOTS, "slot")
        self._active = 0
        self._lock = threading.Lock()

    @property
    def unrung(self) -> int:
        return SLOTS

    def run(self, act: Callable[[], None]) -> None:
        self._threads.submit(act)

    def close(self) -> None:
        self._threads.shutdown()


class Ears:
    """Hears nothing, and keeps what it was to hear."""

    def __init__(self) -> None:
        self.heard: set[str] = set()

    def hear(self, checkpoints: Collection[str]) -> None:
        self.heard = set(checkpoints)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for index in (0, 5, 17):
        recolored.write(folder, index)
    return folder


@contextmanager
def at_work(settings: Settings, celery: Celery, ears: Ears) -> Iterator[GpuWorker]:
    pool = Pool()
    with ExitStack() as opened:
        worker = assembly.assemble(settings, celery, "gpu0@test", SLOTS, opened)
        attendant = worker.attendant(pool, ears)
        attendant.start()
        try:
            yield worker
        finally:
            attendant.stop()
            worker.drain()
            pool.close()
            worker.close()


def submitted(db: Database, *indices: int, steps: int = 2) -> None:
    with db.transaction() as session:
        for index in indices:
            job = params(checkpoint=recolored.name(index), width=64, height=64, steps=steps, seed=7)
            lifecycle.submit(session, job, max_attempts=1)


def rendered(db: Database, settings: Settings, limit_s: float = LIMIT_S) -> dict[str, list[Pixels]]:
    """Wait until every job has ended; return the pictures by checkpoint."""

    def ended() -> bool:
        with db.transaction() as session:
            return not session.scalars(select(JobRow.id).where(JobRow.state.in_(["queued", "running"]))).first()

    assert until(ended, limit_s)
    storage, pictures = Storage(settings), dict[str, list[Pixels]]()
    with db.transaction() as session:
        assert set(session.scalars(select(JobRow.state))) == {JobState.SUCCEEDED}
        rows = session.execute(
            select(JobRow.checkpoint, ImageRow.key).join(ImageRow, ImageRow.job_id == JobRow.id)
        ).all()
    for checkpoint, key in rows:
        picture = np.asarray(Image.open(BytesIO(storage.get(key))))
        pictures.setdefault(checkpoint, []).append(picture)
    return pictures


def colors(pictures: dict[str, list[Pixels]]) -> dict[str, set[int]]:
    """By whose weights the pictures of each checkpoint were made, told by their colours."""
    (demos, *_) = pictures[recolored.name(0)]
    return {name: {recolored.seen(one, demos) for one in made} for name, made in pictures.items()}


@pytest.fixture
def settings(settings: Settings, folder: Path, redis: Redis) -> Settings:
    assert redis.ping()
    return settings.model_copy(
        update={"checkpoint_dir": folder, "checkpoint": None, "profile_seconds": 0.0, "heartbeat_seconds": 0.2}
    )


def test_one_worker_renders_every_checkpoint_of_its_folder(
    settings: Settings, folder: Path, db: Database, celery: Celery
) -> None:
    ears = Ears()
    with at_work(settings, celery, ears) as worker:
        submitted(db, 0, 5, 17, 5, 0, 17)
        assert colors(rendered(db, settings)) == {recolored.name(index): {index} for index in (0, 5, 17)}
        assert ears.heard == {recolored.name(index) for index in (0, 5, 17)}
        with db.transaction() as session:
            told = session.scalars(select(WorkerRow)).one()
            assert told.swaps >= 2
            assert told.checkpoint in ears.heard
            assert set(session.scalars(select(HoldingRow.checkpoint))) == ears.heard

        (folder / f"{recolored.name(5)}.safetensors").unlink()
        recolored.write(folder, 29)
        worker.library.renew()
        with db.transaction() as session:
            assert set(session.scalars(select(HoldingRow.checkpoint))) == {recolored.name(one) for one in (0, 17, 29)}
        submitted(db, 29)
        assert colors(rendered(db, settings))[recolored.name(29)] == {29}


def refined(first: int, second: int | None) -> GenerationParams:
    """A picture of one checkpoint that another changes little: the colours of both are in it."""
    name = None if second is None else recolored.name(second)
    little = hires(width=96, height=96, upscaler=Upscaler.LANCZOS, steps=1, strength=0.02, checkpoint=name)
    return params(checkpoint=recolored.name(first), width=64, height=64, steps=8, seed=7, hires=little)


def test_two_passes_are_rendered_with_two_checkpoints(
    settings: Settings, folder: Path, db: Database, celery: Celery
) -> None:
    pairs = [(0, 5), (5, 0), (5, 17)]
    with at_work(settings, celery, Ears()):
        with db.transaction() as session:
            plain = lifecycle.submit(session, refined(0, None), max_attempts=1).id
            ids = [lifecycle.submit(session, refined(*pair), max_attempts=1).id for pair in pairs]
        rendered(db, settings)
    demos, _ = picture(settings, db, plain)
    for pair, job_id in zip(pairs, ids, strict=True):
        pixels, text = picture(settings, db, job_id)
        assert recolored.seen(pixels, demos) == recolored.twice(*pair)
        first, second = (file_hash(folder, index) for index in pair)
        assert f"Model hash: {first}, Model: {recolored.name(pair[0])}, " in text
        assert f"Hires checkpoint: {recolored.name(pair[1])} [{second}], " in text


def file_hash(folder: Path, index: int) -> str:
    return hashlib.sha256((folder / f"{recolored.name(index)}.safetensors").read_bytes()).hexdigest()[:10]


def picture(settings: Settings, db: Database, job_id: UUID) -> tuple[Pixels, str]:
    """A job's picture, and the text in it."""
    with db.transaction() as session:
        (image,) = lifecycle.get(session, job_id).images
        file = Image.open(BytesIO(Storage(settings).get(image.key)))
    return np.asarray(file), str(file.info["parameters"])


def test_jobs_in_random_order_show_their_own_checkpoints(
    settings: Settings, folder: Path, db: Database, celery: Celery
) -> None:
    """Of which a few fit into memory."""
    for index in range(KINDS):
        recolored.write(folder, index)
    order = [*range(KINDS), *random.Random(1).choices(range(KINDS), k=JOBS - KINDS)]
    random.Random(2).shuffle(order)
    settings = settings.model_copy(update={"ram_bytes": KINDS_IN_RAM * LOADED_BYTES})
    with at_work(settings, celery, Ears()) as worker:
        submitted(db, *order, steps=1)
        pictures = rendered(db, settings, LIMIT_S + JOBS)
        assert sum(len(made) for made in pictures.values()) == JOBS
        assert colors(pictures) == {recolored.name(index): {index} for index in range(KINDS)}
        assert sum(one.number for one in worker.residency.swaps.values()) >= KINDS - 1


def test_a_file_that_breaks_fails_its_own_jobs_alone(
    settings: Settings, folder: Path, db: Database, celery: Celery
) -> None:
    with at_work(settings, celery, Ears()):
        broken = folder / f"{recolored.name(17)}.safetensors"
        whole = broken.read_bytes()
        broken.write_bytes(whole[: len(whole) // 2])
        submitted(db, 17, 0, 5)
        assert until(lambda: states(db).keys() == {JobState.SUCCEEDED, JobState.FAILED})
        assert states(db) == {
            JobState.FAILED: {recolored.name(17)},
            JobState.SUCCEEDED: {recolored.name(0), recolored.name(5)},
        }
        broken.write_bytes(whole)
        submitted(db, 17)
        assert until(lambda: recolored.name(17) in states(db)[JobState.SUCCEEDED])


def test_jobs_of_a_vanished_file_wait_for_a_worker_that_has_it(
    settings: Settings, folder: Path, db: Database, celery: Celery
) -> None:
    """Also those that a worker claims because it has the checkpoint open, and finds out only then."""
    kept, vanished = recolored.name(0), recolored.name(5)
    with at_work(settings, celery, Ears()) as worker:
        submitted(db, 5)
        rendered(db, settings)
        path = folder / f"{vanished}.safetensors"
        path.rename(folder / "aside")
        submitted(db, 5, 5)
        assert until(lambda: vanished not in {one.checkpoint for one in worker.residency.holdings()})
        submitted(db, 0)
        assert until(lambda: kept in states(db)[JobState.SUCCEEDED])
        assert until(lambda: states(db).keys() == {JobState.SUCCEEDED, JobState.QUEUED})
        with db.transaction() as session:
            assert session.scalars(select(JobRow.faults).where(JobRow.state == JobState.QUEUED)).all() == [0, 0]
        (folder / "aside").rename(path)
        assert colors(rendered(db, settings)) == {kept: {0}, vanished: {5}}


def states(db: Database) -> dict[JobState, set[str]]:
    """The checkpoints of the jobs in each state."""
    found: dict[JobState, set[str]] = {}
    with db.transaction() as session:
        for state, checkpoint in session.execute(select(JobRow.state, JobRow.checkpoint)):
            found.setdefault(JobState(state), set()).add(checkpoint)
    return found


def test_a_worker_without_a_folder_renders_from_the_bucket(
    settings: Settings, folder: Path, db: Database, celery: Celery, tmp_path: Path
) -> None:
    """What it has fetched is compared with what was pushed, also after it has lain on a disk."""
    storage, cache = Storage(settings), tmp_path / "cache"
    for index in (0, 5):
        path = folder / f"{recolored.name(index)}.safetensors"
        assert main(["checkpoints", "push", str(path)]) == 0
    try:
        bare = settings.model_copy(update={"checkpoint_dir": None, "cache_dir": cache})
        with at_work(bare, celery, Ears()) as worker:
            assert worker.residency.resident == recolored.name(0)
            submitted(db, 0, 5)
            assert colors(rendered(db, settings)) == {recolored.name(index): {index} for index in (0, 5)}
        (fetched,) = cache.glob(f"**/{recolored.name(5)}/*.safetensors")
        with fetched.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        with at_work(bare, celery, Ears()) as worker:
            submitted(db, 0, 5)
            assert colors(rendered(db, settings)) == {recolored.name(index): {index} for index in (0, 5)}
            assert worker.residency.damaged == {Tier.DISK: 1}
        assert fetched.read_bytes()[-1:] == last
    finally:
        storage.delete_all([one.key for one in large_objects.listed(storage, PREFIX, at_most=1000)])
