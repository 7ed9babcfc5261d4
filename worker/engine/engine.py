"""The loop that fills the device: admit, arrive, schedule, denoise, turn, deliver, for every active request, step by step.

One thread owns the device; any thread may submit, wait and cancel, and what an image needs before the device sees it is done on
the submitting thread. Whatever one request does, the engine's thread lives on.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

import structlog

from shared.errors import Canceled, EngineStopped, FarmError, OutOfMemory, RenderFailed
from worker.engine.pace import Pace
from worker.engine.preparation import Preparation, completed
from worker.engine.request import ActiveImage, Developing, Draft, ImageSpec, Pixels, Request
from worker.engine.scheduler import BatchScheduler, Limits
from worker.engine.snapshot import Snapshot

D = TypeVar("D", bound=Draft)
R = TypeVar("R", bound=ActiveImage)

log = structlog.get_logger(__name__)


class Runner(Protocol[D, R]):
    """What the engine needs of a device. Raises `OutOfMemory` when a call does not fit."""

    def draft(self, spec: ImageSpec) -> D:
        """Do all that needs no device, on any thread: read prompts, load weights, plan the steps, draw the noise."""

    def begin(self, draft: D, snapshot: Snapshot | None = None) -> Preparation[R]:
        """Lead an image to its first step, or to where the snapshot was taken: prompts and picture to start from are encoded."""

    def denoise(self, batch: Sequence[R]) -> None:
        """Make one UNet call for the whole batch and advance each image by one step."""

    def turn(self, image: R) -> Preparation[R]:
        """Lead it from a finished pass to the first step of the next. Until it arrives it is in no batch."""

    def preview(self, image: R) -> Developing:
        """Begin to show the picture as it is taking shape, small."""

    def decode(self, image: R) -> Developing:
        """Begin to turn finished latents into pixels."""


def run_alone(runner: Runner[D, R], spec: ImageSpec) -> Pixels:
    """Render one image by itself: the simple loop that says what the engine must produce."""
    image = completed(runner.begin(runner.draft(spec)))
    while not image.is_over:
        if image.is_pass_over:
            image = completed(runner.turn(image))
        else:
            runner.denoise([image])
    return runner.decode(image).pixels()


class Engine(Generic[D, R]):
    """Continuous batching over one runner. `limits` bounds the samples of one UNet call."""

    def __init__(self, runner: Runner[D, R], *, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._runner = runner
        self._scheduler: BatchScheduler[Request] = BatchScheduler(limits)
        self._arriving: dict[Request, Preparation[R]] = {}
        self._images: dict[Request, R] = {}
        self._developing: deque[tuple[Request, Developing]] = deque()
        self._clock = clock
        self._got_on_at: float | None = None
        self.pace = Pace()
        self._inbox: deque[tuple[Request, D]] = deque()
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

    def submit(self, spec: ImageSpec, snapshot: Snapshot | None = None) -> Request:
        """Make an image ready on this thread, then let it join from the next tick on. What is wrong with it shows in the result.

        With a snapshot of the same image it goes on from there. Raises `EngineStopped`.
        """
        request = Request(spec, snapshot)
        try:
            draft = self._runner.draft(spec)
        except Exception as error:  # noqa: BLE001 - whoever waits for the result must hear of it
            request.fail(_as_render_error(error))
            return request
        request.steps_total = draft.steps_total
        with self._changed:
            if self._is_stopped:
                raise EngineStopped
            self._inbox.append((request, draft))
            self._changed.notify()
        return request

    @property
    def seconds_stuck(self) -> float:
        """For how long the present tick has got nowhere; 0 while there is nothing to do."""
        began = self._got_on_at
        return 0.0 if began is None else self._clock() - began

    @property
    def is_alive(self) -> bool:
        """Whether the thread works or waits for work."""
        return self._thread.is_alive()

    def tick(self) -> None:
        """Advance the requests whose turn it is by one UNet call."""
        began = self._clock()
        self._admit()
        self._drop_canceled()
        self._arrive()
        batch = self._scheduler.schedule()
        if batch:
            cost = sum(self._images[request].cost for request in batch)
            self._denoise(batch)
            for request in batch:
                self._move_on(request)
        self._deliver(wait=not self._images and not self._arriving)
        if batch:
            self.pace = self.pace.after(self._clock() - began, cost=cost, images=len(batch))
        elif self._arriving:
            self._await_oldest()

    def _run(self) -> None:
        while self._wait_for_work():
            self._got_on_at = self._clock()
            self.tick()
            self._got_on_at = None

    def _get_on(self) -> None:
        """Tell the watchdog that one act of a tick is over: on a CPU sixteen pictures are decoded in one, for minutes."""
        if self._got_on_at is not None:
            self._got_on_at = self._clock()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._has_work or self._is_stopped)
            return not self._is_stopped

    @property
    def _has_work(self) -> bool:
        return bool(self._inbox or self._arriving or self._images or self._developing)

    def _drop_canceled(self) -> None:
        for request in self._scheduler.requests():
            if request.is_canceled:
                self._leave(request, Canceled())
        for request in [request for request in self._arriving if request.is_canceled]:
            self._turn_away(request, Canceled())

    def _admit(self) -> None:
        while self._inbox:
            request, draft = self._inbox.popleft()
            self._arriving[request] = self._runner.begin(draft, request.snapshot)

    def _arrive(self) -> None:
        """Let those take part that stand at the first step of their pass, and lead the others on."""
        for request, arrival in list(self._arriving.items()):
            self._get_on()
            try:
                image = arrival.get()
                if image is not None:
                    self._scheduler.add(request, image.bucket, samples=image.samples, cost=image.cost)
            except Exception as error:  # noqa: BLE001 - one bad request must not end the others
                self._turn_away(request, _as_render_error(error))
                continue
            if image is not None:
                del self._arriving[request]
                self._images[request] = image
                self._move_on(request)

    def _await_oldest(self) -> None:
        """Wait for what the oldest arrival waits for: with nothing to denoise there is nothing better to do.

        Not for all of its way: meanwhile others may come, who have none, or go.
        """
        request, arrival = next(iter(self._arriving.items()))
        try:
            arrival.wait()
        except Exception as error:  # noqa: BLE001 - as above
            self._turn_away(request, _as_render_error(error))

    def _turn_away(self, request: Request, error: Exception) -> None:
        del self._arriving[request]
        request.fail(error)

    def _denoise(self, batch: list[Request]) -> None:
        try:
            self._runner.denoise([self._images[request] for request in batch])
            self._scheduler.fitted(batch)
        except OutOfMemory as error:
            if self._scheduler.shrink(batch):
                log.warning("batch.shrunk", requests=len(batch))
            else:
                self._leave(batch[0], error)
        except Exception as error:  # noqa: BLE001 - the thread must outlive any batch
            for request in batch:
                self._leave(request, _as_render_error(error))

    def _move_on(self, request: Request) -> None:
        """Do what follows an image's step: show it, start its next pass, or develop it."""
        self._get_on()
        image = self._images.get(request)
        if image is None:
            return
        request.steps_done, request.snapshot = image.steps_done, image.snapshot()
        if request.is_canceled:  # at once: whoever stands behind its last step is not to be in a batch again
            self._leave(request, Canceled())
            return
        try:
            self._advance(request, image)
        except Exception as error:  # noqa: BLE001 - as above
            self._leave(request, _as_render_error(error))

    def _advance(self, request: Request, image: R) -> None:
        if image.is_pass_over and not image.is_over:
            self._leave(request, None)
            self._arriving[request] = self._runner.turn(image)
        elif image.is_over:
            self._developing.append((request, self._runner.decode(image)))
            self._leave(request, None)
        elif request.wants_preview:
            self._show(request, image)

    def _show(self, request: Request, image: R) -> None:
        """Begin a preview. One that fails, where memory is nearly full, costs the preview and never the image."""
        request.wants_preview = False
        try:
            request.preview = self._runner.preview(image)
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("preview.failed", error=f"{type(error).__name__}: {error}"[:500])

    def _deliver(self, *, wait: bool) -> None:
        """Hand over the pictures that are there, oldest first; with `wait` one of them is waited for."""
        while self._developing:
            request, developing = self._developing[0]
            self._get_on()
            try:
                if request.is_canceled:
                    request.fail(Canceled())
                elif wait or developing.is_ready:
                    request.finish(developing.pixels())
                    wait = False
                else:
                    return
            except Exception as error:  # noqa: BLE001 - as above
                request.fail(_as_render_error(error))
            self._developing.popleft()

    def _leave(self, request: Request, error: Exception | None) -> None:
        self._scheduler.remove(request)
        del self._images[request]
        if error is not None:
            request.fail(error)

    def _abandon(self) -> None:
        waiting = [request for request, _ in [*self._inbox, *self._developing]]
        for request in [*self._images, *self._arriving, *waiting]:
            request.fail(EngineStopped())


def _as_render_error(error: Exception) -> Exception:
    if isinstance(error, FarmError):
        return error
    log.error("engine.request_crashed", exc_info=error)
    return RenderFailed(f"The engine met an unexpected {type(error).__name__}; the worker's log has the details.")
