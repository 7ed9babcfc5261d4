"""The engine as slots use it: snapshots guard a job's steps against the loss of the worker, fitness checks its images."""

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

from shared.errors import NotANumber, OutOfMemory, RenderFailed, WorkerUnfit
from worker.engine.engine import Engine
from worker.engine.request import ImageSpec, Pixels, Request
from worker.engine.snapshot import Snapshot
from worker.health.fitness import FitnessCheck
from worker.slots.leases import RunningJob
from worker.slots.snapshots import Snapshots


class GuardedEngine:
    """Renders the images of jobs. Images leave it only while the worker is fit."""

    def __init__(self, engine: Engine[Any, Any], snapshots: Snapshots, fitness: FitnessCheck) -> None:
        self._engine = engine
        self._snapshots = snapshots
        self._fitness = fitness

    def submit(self, running: RunningJob, specs: Iterable[ImageSpec]) -> None:
        """Submit a job's images, each from where its snapshot stands."""
        # Once for all images, and again should the checkpoint's file be replaced between two of them.
        recalled = cache(partial(self._snapshots.recall, running.claim))

        def recall(index: int, weights: str) -> Snapshot | None:
            return recalled(weights).get(index)

        for index, spec in enumerate(specs):
            running.add(self._engine.submit(spec, recall=partial(recall, index)))

    def pixels(self, running: RunningJob, request: Request) -> Pixels:
        """Wait for an image, and snapshot the whole job now and then.

        Raises what the request raises, and `WorkerUnfit` unless the weights that rendered it are those that were loaded.
        """
        while True:
            try:
                pixels = request.result(timeout=self._snapshots.due_s(running))
            except TimeoutError:
                self._fitness.vouch()
                self._snapshots.keep(running)
            else:
                self._fitness.vouch()
                return pixels

    def is_unfit(self, result: object) -> bool:
        """Whether an attempt failed because of this worker. After a strange error the canary decides."""
        if isinstance(result, WorkerUnfit):
            return True
        return type(result) in {RenderFailed, NotANumber} and not self._fitness.examine()

    def save(self, running: RunningJob, *, is_spoiled: bool) -> None:
        """Leave a snapshot to the next worker, unless this one spoiled the job's images."""
        if is_spoiled or not self._is_trusted():
            self._snapshots.discard(running.claim)
        else:
            self._snapshots.keep(running)

    def _is_trusted(self) -> bool:
        try:
            self._fitness.vouch()
        except (WorkerUnfit, OutOfMemory):  # wrong, or too full to tell
            return False
        return True
