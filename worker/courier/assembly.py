"""Assembly of a courier: opens its parts in order and returns it finished."""

from contextlib import ExitStack
from dataclasses import dataclass, field

from celery import Celery
from redis import Redis

from shared.infra import broker, metrics
from shared.infra.db import Database
from shared.infra.events import Listener
from shared.infra.metrics import Board
from shared.infra.outbound_http import OutboundHttp
from shared.infra.storage import Storage
from shared.settings import Settings
from worker.courier import maintenance
from worker.courier.rounds import Round
from worker.courier.webhooks import Courier

FORGET_S = 600.0
STOCK_S = 30.0
# Nobody waits for a sweep, and each is cut to pieces.
PATIENCE_S = 60.0


class CourierMetrics:
    """The numbers of one courier for Prometheus."""

    def __init__(self) -> None:
        self.board = Board()
        self.webhooks_sent = self.board.counter(metrics.WEBHOOKS_SENT)
        self.rescued = self.board.counter(metrics.RESCUED)
        self.rings = self.board.counter(metrics.RINGS)
        self.upkeep_at = self.board.gauge(metrics.UPKEEP_AT)


@dataclass(frozen=True, slots=True)
class CourierWorker:
    """A courier that is open: it delivers webhooks and does upkeep in `rounds`. `opened` holds what it must close."""

    settings: Settings
    celery: Celery
    db: Database
    redis: Redis
    storage: Storage
    metrics: CourierMetrics
    opened: ExitStack
    # Where this courier's walk over the bucket has come to; a new one begins anew.
    places: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, Round] = field(default_factory=dict)

    def upkeep(self) -> None:
        """Rescue and unpark, then ring, last: those jobs are among the ones that wait, and all else needs no Redis."""
        db, redis, settings = self.db, self.redis, self.settings
        for state in maintenance.rescue_lost_jobs(db, redis, lease_s=settings.lease_seconds):
            self.metrics.rescued.labels(state).inc()
        maintenance.unpark_jobs(db)
        maintenance.end_overdue_jobs(db, redis)
        maintenance.record_progress(db, every_s=settings.webhook_progress_seconds)
        maintenance.measure_demand(db)
        maintenance.forget_silent_workers(db)
        maintenance.forget_idempotency_keys(db)
        maintenance.forget_canaries(db)
        self.metrics.rings.inc(maintenance.reconcile(db, redis, self.celery))
        self.metrics.upkeep_at.set_to_current_time()

    def forget(self) -> None:
        """Delete old events, jobs and uploads, and the objects of the storage that no job needs any more."""
        db, storage, settings = self.db, self.storage, self.settings
        maintenance.forget_events(db, older_than_s=settings.event_retention_seconds)
        maintenance.sweep_snapshots(db, storage)
        maintenance.sweep_litter(db, storage)
        maintenance.sweep_uploads(db, storage)
        maintenance.remove_aged(db, storage, days=settings.retention_days)
        maintenance.sweep_inputs(db, storage)
        maintenance.sweep_orphans(db, storage, self.places)

    def take_stock(self) -> None:
        """Let jobs name what the bucket has."""
        maintenance.take_stock(self.db, self.storage)

    def start(self) -> None:
        """Begin to do upkeep in rounds."""
        for one in (
            Round("upkeep", self.upkeep, every_s=self.settings.rescue_seconds),
            Round("forget", self.forget, every_s=FORGET_S),
            Round("stock", self.take_stock, every_s=STOCK_S),
        ):
            self.rounds[one.name] = one
            one.start()
            self.opened.callback(one.stop)

    def close(self) -> None:
        """Close everything, last opened first."""
        self.opened.close()


def assemble(settings: Settings, celery: Celery) -> CourierWorker:
    """Open a courier. On an error, what was opened is closed again."""
    with ExitStack() as opened:
        db = Database(settings, pool_size=8, patience_s=PATIENCE_S)
        opened.callback(db.close)
        redis = broker.connect(settings)
        opened.callback(redis.close)
        storage = Storage(settings)
        counts = CourierMetrics()
        if settings.metrics_port:
            opened.callback(counts.board.serve(settings.metrics_port))
        courier = Courier(
            db,
            OutboundHttp(allow_private=settings.allow_private_urls),
            settings,
            sent=lambda outcome: counts.webhooks_sent.labels(outcome.word).inc(),
        )
        news = Listener(redis, lambda _event: courier.wake())
        for part in (courier, news):
            part.start()
            opened.callback(part.stop)
        worker = CourierWorker(settings, celery, db, redis, storage, counts, opened.pop_all())
        worker.start()
        return worker
