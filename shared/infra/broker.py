"""Celery and Redis clients, and doorbells: Celery messages that say "there is work for this checkpoint" and name no job.

A lost doorbell loses no job: the courier rings again while rows wait (`worker.courier.maintenance`).
"""

import time
from queue import Empty
from uuid import uuid4

import structlog
from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError  # noqa: A004 - Redis's own
from redis.retry import Retry as BlockingRetry

from shared.infra.kombu_transport import PROBE, PROBE_S
from shared.infra.redis_faults import explained
from shared.redis_address import RedisAddress
from shared.settings import Settings

RENDER_TASK = "render.answer"
COURIER_QUEUE = "courier"
_KEY_PREFIX = "farm:"
HASTE_S = 2.0
SILENT_S = 2.0
_HEARD_S = 10.0

log = structlog.get_logger(__name__)


class _App(Celery):  # an untyped library
    """A Celery application that remembers how long its broker is not to be rung."""

    silent_until = 0.0


def celery_app(settings: Settings, *, hasty: bool = False) -> Celery:
    """Return the farm's Celery application, without connecting. A hasty one gives up sooner on a Redis that is silent.

    Acks are late and nothing is prefetched, so a doorbell never waits in a busy worker while another idles. A redelivered
    doorbell is harmless, hence the short restore intervals; results live in Postgres, so Celery stores none.
    """
    address = _address(settings)
    app = _App("farm", broker=address.url, set_as_current=False)
    app.conf.update(
        # kombu takes TLS from the name of a transport, and ours is none that it knows.
        broker_use_ssl=dict(address.tls) or None,
        broker_transport="shared.infra.kombu_transport:Transport",
        # Celery's default would fork: a worker's parts are open in the process that it was started as, and nowhere else.
        worker_pool="threads",
        task_acks_late=True,
        task_ignore_result=True,
        task_create_missing_queues=True,
        task_default_queue=COURIER_QUEUE,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A worker seeks a new connection as well where Redis refuses what it says, out of memory or a replica by now.
        broker_channel_error_retry=True,
        broker_connection_timeout=settings.connect_seconds,
        broker_transport_options={
            # A ring is a hint: it fails at once when Redis is away instead of holding up the next for kombu's default 6 s.
            "max_retries": 1,
            "interval_start": 0,
            "visibility_timeout": 3600,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 10,
            "socket_timeout": HASTE_S if hasty else 10,
            "socket_connect_timeout": settings.connect_seconds,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "global_keyprefix": _KEY_PREFIX,
            # Doorbells have no priority, and a worker that hears those of 300 checkpoints names each queue in every look.
            "priority_steps": [0],
            "client_name": "farm",
        },
    )
    return app


def render_queue(checkpoint: str) -> str:
    """Name the queue on which a checkpoint's doorbells ring."""
    return f"render.{checkpoint}"


def listen_for(app: Celery, checkpoint: str) -> None:
    """Make a worker that is about to start consume the doorbells of one checkpoint and nothing else."""
    app.conf.task_queues = [Queue(render_queue(checkpoint))]
    app.conf.task_default_queue = render_queue(checkpoint)


def ring(app: Celery, checkpoint: str, times: int = 1) -> bool:
    """Ring a checkpoint's doorbell so many times. When Redis does not answer: False and a log line; the courier will ring again.

    After a Redis that kept its caller waiting, the next ones do not even ask for `SILENT_S`.
    """
    began_s = time.monotonic()
    if began_s < app.silent_until:
        return False
    try:
        # What `app.send_task` does at three times the cost, in one round trip.
        with app.producer_or_acquire() as producer, producer.batch():
            for _ in range(times):
                bell = app.amqp.as_task_v2(str(uuid4()), RENDER_TASK, ignore_result=True)
                about = {**bell.properties, "headers": bell.headers, "serializer": "json"}
                producer.publish(bell.body, routing_key=render_queue(checkpoint), **about)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("doorbell.lost", checkpoint=checkpoint, **explained(error).log_fields)
        if time.monotonic() - began_s > HASTE_S / 2:
            app.silent_until = time.monotonic() + SILENT_S
        return False
    return True


def connect(settings: Settings, *, hasty: bool = False) -> Redis:
    """Return a Redis client with bounded waits, without connecting. A hasty one is for calls that a client waits for."""
    address = _address(settings)
    return Redis.from_url(
        address.url,
        socket_connect_timeout=settings.connect_seconds,
        socket_timeout=HASTE_S if hasty else 10,
        socket_keepalive=True,
        health_check_interval=30,
        decode_responses=True,
        # Once more on a new connection, for Redis may have been restarted; but whoever is silent is not asked again.
        **({"retry": BlockingRetry(NoBackoff(), 1, supported_errors=(ConnectionError,))} if hasty else {}),
        **address.tls,
    )


def connect_async(settings: Settings, *, hasty: bool = False) -> AsyncRedis:
    """Return a Redis client for asyncio, without connecting. It never retries: its caller reconnects."""
    address = _address(settings)
    return AsyncRedis.from_url(
        address.url,
        socket_connect_timeout=settings.connect_seconds,
        socket_timeout=HASTE_S if hasty else 10,
        socket_keepalive=True,
        health_check_interval=5,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        **address.tls,
    )


def waiting_doorbells(redis: Redis, checkpoint: str) -> int:
    """Count the doorbells of a checkpoint that no worker has heard yet."""
    try:
        return int(redis.llen(_KEY_PREFIX + render_queue(checkpoint)))
    except RedisError as error:
        raise explained(error) from error


def check(redis: Redis) -> None:
    """Have Redis write something. Raises `BrokerUnavailable`, also for one that only reads: it would lose doorbells."""
    try:
        redis.set(_KEY_PREFIX + PROBE, "", ex=PROBE_S)
    except RedisError as error:
        raise explained(error) from error


def check_doorbells(app: Celery) -> None:
    """Ring a doorbell of nobody's and hear it, over such connections as workers have. Raises `BrokerUnavailable`."""
    name = f"doctor.{uuid4()}"
    try:
        with (
            app.connection_for_write() as ringing,
            app.connection_for_read() as hearing,
            ringing.SimpleQueue(name) as rung,
            hearing.SimpleQueue(name) as heard,
        ):
            try:
                rung.put(name)
                heard.get(timeout=_HEARD_S).ack()
            finally:
                heard.queue.delete()
    except (OperationalError, RedisError, OSError, Empty) as error:
        raise explained(error) from error


def _address(settings: Settings) -> RedisAddress:
    return RedisAddress.parse(settings.redis_url.get_secret_value())
