"""The loop that fills the device: admit, schedule, denoise, finish, for every request that is active, step by step.

One thread owns the runner and so the device; any thread may submit, wait and cancel. Whatever one
request does, the thread lives on.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

import structlog

from shared.errors import Canceled, EngineStopped, FarmError, OutOfMemory, RenderFailed
from worker.engine.request import Denoising, ImageSpec, Pixels, Request
from worker.engine.scheduler import BatchScheduler

D = TypeVar("D", bound=Denoising)

log = structlog.get_logger(__name__)


class Runner(Protocol[D]):
    """What the engine needs of a device. Raises `OutOfMemory` when a call does not fit."""

    def prepare(self, spec: ImageSpec) -> D:
        """Encode the prompt, draw the noise, set up the sampler."""

    def denoise(self, batch: Sequence[D]) -> None:
        """Make one UNet call for the whole batch and advance each image by one step."""

    def decode(self, denoised: D) -> Pixels:
        """Turn finished latents into pixels."""


def run_alone(runner: Runner[D], spec: ImageSpec) -> Pixels:
    """Render one image by itself: the simple loop that says what the engine must produce."""
    image = runner.prepare(spec)
    while image.steps_done < image.steps_total:
        runner.denoise([image])
    return runner.decode(image)


class Engine(Generic[D]):
    """Continuous batching over one runner. `max_samples` bounds the rows of one UNet call."""

    def __init__(self, runner: Runner[D], *, max_samples: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._runner = runner
        self._scheduler: BatchScheduler[Request] = BatchScheduler(max_samples)
        self._images: dict[Request, D] = {}
        self._clock = clock
        self._tick_began: float | None = None
        self._inbox: deque[Request] = deque()
        self._changed = Condition()
        self._is_stopped = False
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the present tick, if there is one; every request in flight fails with `EngineStopped`."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._abandon()

    def submit(self, spec: ImageSpec) -> Request:
        """Let an image join from the next tick on."""
        request = Request(spec)
        with self._changed:
            if self._is_stopped:
                raise EngineStopped
            self._inbox.append(request)
            self._changed.notify()
        return request

    @property
    def seconds_since_tick(self) -> float:
        """How long the present tick has taken; 0 while there is nothing to do."""
        began = self._tick_began
        return 0.0 if began is None else self._clock() - began

    @property
    def is_alive(self) -> bool:
        """Whether the thread works or waits for work."""
        return self._thread.is_alive()

    def tick(self) -> None:
        """Advance the requests whose turn it is by one UNet call."""
        self._drop_canceled()
        self._admit()
        batch = self._scheduler.schedule()
        if batch:
            self._denoise(batch)
            self._finish(batch)

    def _run(self) -> None:
        while self._wait_for_work():
            self._tick_began = self._clock()
            self.tick()
            self._tick_began = None

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._images or self._is_stopped)
            return not self._is_stopped

    def _drop_canceled(self) -> None:
        for request in self._scheduler.requests():
            if request.is_canceled:
                self._leave(request, Canceled())

    def _admit(self) -> None:
        while self._inbox:
            request = self._inbox.popleft()
            if request.is_canceled:
                request.fail(Canceled())
                continue
            try:
                image = self._runner.prepare(request.spec)
            except Exception as error:  # noqa: BLE001 - one bad request must not end the others
                request.fail(_as_render_error(error))
                continue
            request.denoising = image
            self._images[request] = image
            self._scheduler.add(request, image.bucket, samples=image.samples, cost=image.cost)

    def _denoise(self, batch: list[Request]) -> None:
        try:
            self._runner.denoise([self._images[request] for request in batch])
        except OutOfMemory as error:
            if self._scheduler.shrink(batch):
                log.warning("batch.shrunk", requests=len(batch))
            else:
                self._leave(batch[0], error)
        except Exception as error:  # noqa: BLE001 - the thread must outlive any batch
            for request in batch:
                self._leave(request, _as_render_error(error))

    def _finish(self, batch: list[Request]) -> None:
        for request in batch:
            image = self._images.get(request)
            # A canceled one is dropped at the next tick's start; decoding it would be work for nobody.
            if image is None or image.steps_done < image.steps_total or request.is_canceled:
                continue
            try:
                pixels = self._runner.decode(image)
            except Exception as error:  # noqa: BLE001 - as above
                self._leave(request, _as_render_error(error))
            else:
                self._leave(request, None)
                request.finish(pixels)

    def _leave(self, request: Request, error: Exception | None) -> None:
        self._scheduler.remove(request)
        del self._images[request]
        if error is not None:
            request.fail(error)

    def _abandon(self) -> None:
        for request in [*self._images, *self._inbox]:
            request.fail(EngineStopped())


def _as_render_error(error: Exception) -> Exception:
    if isinstance(error, FarmError):
        return error
    log.error("engine.request_crashed", exc_info=error)
    return RenderFailed(f"The engine met an unexpected {type(error).__name__}; the worker's log has the details.")
