"""Attends to a worker's slots: doorbells are answered, jobs that nobody rang for are looked for, checkpoints are turned to."""

from collections.abc import Callable

from worker.slots import lookout
from worker.slots.lookout import Lookout, Slots
from worker.slots.render import Renderer
from worker.slots.turning import Turning


class Attendant:
    """Has one worker's slots do what waits. What they do for a doorbell or a look ends with thinking about what to turn to.

    A doorbell that was heard while another checkpoint was open is gone, so a slot that becomes free looks for what is left.
    """

    def __init__(self, renderer: Renderer, slots: Slots, turning: Callable[[Callable[[], None]], Turning]) -> None:
        self._renderer = renderer
        self._lookout = Lookout(slots, self._answer, every_s=lookout.EVERY_S)
        self._turning = turning(self._lookout.look)

    def start(self) -> None:
        self._turning.start()
        self._lookout.start()

    def stop(self) -> None:
        """Look for nothing more. Jobs that were found run on."""
        self._lookout.stop()
        self._turning.stop()

    def answer(self) -> None:
        """Answer one doorbell."""
        if self._answer():
            self._lookout.look()

    def _answer(self, claimed: Callable[[], None] = lambda: None) -> bool:
        try:
            return self._renderer.answer(claimed)
        finally:
            self._turning.wake()
