"""The doorbells that a gpu worker hears: the queues of its Celery consumer, changed while it runs."""

from collections.abc import Collection
from typing import Protocol

from celery.worker import WorkController
from celery.worker.consumer import Consumer
from kombu.entity import Queue

from shared.infra.broker import render_queue


class HeardDoorbells(Protocol):
    """What a worker hears doorbells with."""

    def hear(self, checkpoints: Collection[str]) -> None:
        """Hear the doorbells of these checkpoints and no others."""


class ConsumedDoorbells:
    """The doorbells of a Celery worker. Any thread may change them: the consumer's loop does it, in its own thread."""

    def __init__(self, controller: WorkController) -> None:
        self._controller = controller
        self._heard: frozenset[str] = frozenset()

    def hear(self, checkpoints: Collection[str]) -> None:
        """Hear the doorbells of these checkpoints and no others, also after a lost connection."""
        wanted = frozenset(checkpoints)
        consumer = self._controller.consumer
        if consumer is not None and wanted != self._heard:
            self._heard = wanted
            consumer.call_soon(_change, consumer, wanted)


def _change(consumer: Consumer, checkpoints: Collection[str]) -> None:
    queues = consumer.app.amqp.queues
    wanted, heard = {render_queue(name) for name in checkpoints}, set(queues.consume_from)
    # While it seeks a connection it has no task consumer; the next one consumes what is selected by then.
    is_connected = consumer.task_consumer is not None
    for name in sorted(wanted - heard):
        queues.select_add(Queue(name))
        if is_connected:
            consumer.add_task_queue(name)
    for name in sorted(heard - wanted):
        if is_connected:
            consumer.cancel_task_queue(name)
        else:
            queues.deselect(name)
