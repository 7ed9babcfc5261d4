"""A running farm inside the test's own process, on the demo checkpoint: a real api on loopback, and a gpu worker of real parts.

Of a worker only Celery's consumer is left out: its slots wait for the same doorbells in Redis.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Event, Thread

import uvicorn

from api import serve
from api.main import create_app
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile
from shared.files.weights import Shelves
from shared.infra import broker
from shared.infra.db import Database
from shared.infra.events import Listener
from shared.infra.storage import Storage
from shared.settings import Settings
from tests.support import kin, studio
from tests.support.factories import DEMO
from worker.engine.draft import ExtraWeights
from worker.engine.runner import DiffusionRunner
from worker.health.fitness import Unexamined
from worker.periodic import Periodic
from worker.residency.reading import FileFacts
from worker.residency.residency import Residency
from worker.slots.attempts import Attempts
from worker.slots.claim_gate import ClaimGate
from worker.slots.guarded_engine import GuardedEngine
from worker.slots.image_store import ImageStore
from worker.slots.leases import Leases
from worker.slots.open_checkpoints import OpenCheckpoints
from worker.slots.previews import PreviewPublisher
from worker.slots.render import Renderer
from worker.slots.snapshots import Snapshots

DOORBELLS = f"farm:{broker.render_queue(DEMO)}"


@contextmanager
def serving(settings: Settings, *, port: int = 0) -> Iterator[str]:
    """Serve the api on a port of loopback, by default a free one; yields its address."""
    config = serve.config("127.0.0.1", port)
    config.app, config.factory, config.log_level, config.lifespan = create_app(settings), False, "critical", "on"
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def working(
    settings: Settings, *, slots: int = 4, shelves: Shelves | None = None, others: Sequence[CheckpointFile] = ()
) -> Iterator[None]:
    """Answer doorbells for as long as the block lasts; second passes may have other checkpoints."""
    with ExitStack() as closing:
        engine = closing.enter_context(studio.running(_runner(shelves, others)))
        db = Database(settings, pool_size=slots + 2)
        closing.callback(db.close)
        redis = broker.connect(settings)
        closing.callback(redis.close)
        celery = broker.celery_app(settings)
        closing.callback(celery.close)
        leases = Leases(db, settings, "gpu0@test")
        parts = (
            leases,
            Listener(redis, leases.hear),
            Periodic("previews", PreviewPublisher(redis, leases.running).renew, every_s=0.1),
        )
        for part in parts:
            part.start()
            closing.callback(part.stop)
        renderer = Renderer(
            Attempts(db, redis, celery, settings, opened=OpenCheckpoints(DEMO), worker_id="gpu0@test"),
            GuardedEngine(engine, Snapshots(db, settings), Unexamined()),
            ImageStore(Storage(settings), settings),
            leases,
            ClaimGate(16),
        )
        over = Event()

        def slot() -> None:
            while not over.is_set():
                if redis.blpop([DOORBELLS], timeout=1):
                    renderer.answer()

        threads = [Thread(target=slot) for _ in range(slots)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            leases.drain()
            for thread in threads:
                thread.join()


def _runner(shelves: Shelves | None, others: Sequence[CheckpointFile]) -> DiffusionRunner:
    demo = checkpoints.inspect(studio.DEMO)
    extras = ExtraWeights.at(shelves, memory_bytes=10**9) if shelves else None
    # The demo that tests share keeps its weights.
    own = (
        kin.residency(demo, *others) if others else Residency(studio.demo(), facts=FileFacts(checkpoints.digest(demo)))
    )
    return DiffusionRunner(own, extras)
