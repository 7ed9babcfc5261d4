"""kombu's Redis transport with two fixes: a lost ack holds no prefetch slot, and who only reads is not connected to.

kombu 5.7 counts a message against the prefetch limit until Redis has taken its ack. A Redis that reads its data after a restart
refuses acks (`BusyLoadingError`) on connections that stay open, and Celery logs that and goes on. Each ack lost so cost a worker
a slot until it next reconnected, and with the last slot it heard no doorbell any more.

A Redis that is out of memory or a replica answers kombu's ping and refuses its first write, which ended the worker's process.
Later it refuses every look for messages to redeliver, each with a traceback in the log.
"""

from typing import Any

import structlog
from kombu.transport import redis, virtual
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import ResponseError

from shared.infra.redis_faults import explained

PROBE = "probe"
PROBE_S = 60

log = structlog.get_logger(__name__)


class QoS(redis.QoS):
    """The unacked messages of a channel, for a Redis that may refuse what is said of them."""

    def ack(self, delivery_tag: str) -> None:
        """Ack a message, which frees its slot in any case.

        If Redis misses the ack, it redelivers the message after the visibility timeout: a stale doorbell.
        """
        try:
            super().ack(delivery_tag)
        except BaseException:
            virtual.QoS.ack(self, delivery_tag)
            raise

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Put back what was not acked in time; if Redis refuses, the next time."""
        try:
            super().restore_visible(*args, **kwargs)
        except ResponseError as error:
            log.warning("doorbells.not_restored", **explained(error).log_fields)


class Channel(redis.Channel):
    """A channel with that QoS, which opens only where it can write. Celery seeks a connection until it has one."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            self.client.set(PROBE, "", ex=PROBE_S)
        except ResponseError as error:
            self.close()
            raise NoConnection(str(error)) from error


class Transport(redis.Transport):
    """Redis for Celery; `broker_transport` names it."""

    Channel = Channel
