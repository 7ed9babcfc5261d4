"""The roll call after a storm: every slot of every worker must still hear its doorbell.

A farm with deaf slots still ends all its jobs, only ever later, so no rule of the checker would notice.
"""

from collections.abc import Iterator

from tests.chaos.checker import Violation
from tests.chaos.farm import Shape, Stage
from tests.chaos.steady import steady
from tests.support.waiting import until

WAIT_S = 60.0


def absent(stage: Stage, shape: Shape) -> Iterator[Violation]:
    """Give every slot work for as long as is waited, and name the workers that do not run as many jobs as they have slots."""
    most: dict[str, int] = {}

    def all_answer() -> bool:
        for worker, running in stage.recorder.running().items():
            most[worker] = max(running, most.get(worker, 0))
        return sum(running >= shape.slots for running in most.values()) >= shape.workers

    with steady(stage, shape, WAIT_S):
        if not until(all_answer, WAIT_S):
            yield Violation("deaf_slots", f"of {shape.slots} slots each, at most so many ran jobs at once: {most}")
