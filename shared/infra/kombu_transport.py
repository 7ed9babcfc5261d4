"""kombu's Redis transport with one fix: a lost ack no longer holds its prefetch slot.

kombu 5.7 counts a message against the prefetch limit until Redis has taken its ack. A Redis that reads its data after a restart
refuses acks (`BusyLoadingError`) on connections that stay open, and Celery logs that and goes on. Each ack lost so cost a worker
a slot until it next reconnected, and with the last slot it heard no doorbell any more.
"""

from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """The unacked messages of a channel; `ack` frees the slot even when Redis refuses it."""

    def ack(self, delivery_tag: str) -> None:
        """Ack a message. If Redis misses the ack, it redelivers the message after the visibility timeout: a stale doorbell."""
        try:
            super().ack(delivery_tag)
        except BaseException:
            virtual.QoS.ack(self, delivery_tag)
            raise


class Channel(redis.Channel):
    """A channel with that QoS."""

    QoS = QoS


class Transport(redis.Transport):
    """Redis for Celery; `broker_transport` names it."""

    Channel = Channel
