"""kombu's Redis transport with one repair: a slot is free again when its task has ended, whether or not Redis hears of it.

kombu 5.7 counts a message against the prefetch limit until Redis has taken its ack. A Redis that reads its data after a restart
refuses acks (`BusyLoadingError`) on connections that stay open, and Celery logs that and goes on. Each ack lost so cost a worker
a slot until it next reconnected, and with the last slot it heard no doorbell any more.
"""

from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """The messages that one channel holds."""

    def ack(self, delivery_tag: str) -> None:
        """Let go of a message. One that Redis still counts as held comes back after the visibility timeout: a stale doorbell."""
        try:
            super().ack(delivery_tag)
        except BaseException:
            virtual.QoS.ack(self, delivery_tag)
            raise


class Channel(redis.Channel):
    """A channel whose messages are let go of for sure."""

    QoS = QoS


class Transport(redis.Transport):
    """Redis for Celery; `broker_transport` names it."""

    Channel = Channel
