"""Continuous batching: each tick schedules a batch, runs one UNet call for it and postprocesses its requests.

A request goes through these stages, of which `tick` advances all, but for those that need a checkpoint whose turn it is not:

    inbox ──admit──▶ preparing ──join──▶ running ──last step──▶ decoding ──finish──▶ its future
                         ▲                  │
                         └──── next pass ───┘

One thread, the engine's, owns the device. Any thread may submit, wait for a result or cancel; the submitting thread drafts the
image (`Runner.draft`). An exception of one request fails that request alone, and the engine's thread lives on.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from threading import Condition, Thread
from typing import Generic, Protocol, TypeVar

import structlog

from shared.errors import Canceled, EngineStopped, FarmError, OutOfMemory, RenderFailed
from worker.engine.pace import Pace
from worker.engine.preparation import Pending, Preparation
from worker.engine.request import ActiveImage, Draft, ImageSpec, PendingPixels, Pixels, Request
from worker.engine.scheduler import BatchScheduler, Limits
from worker.engine.snapshot import Snapshot
from worker.engine.turns import Turns

D = TypeVar("D", bound=Draft)
R = TypeVar("R", bound=ActiveImage)
Recall = Callable[[str], Snapshot | None]

log = structlog.get_logger(__name__)


class Runner(Protocol[D, R]):
    """The engine's view of a device. Every method may raise `OutOfMemory`; all but `draft` run on the engine's thread."""

    def price_s(self, checkpoint: Hashable) -> float:
        """Return the seconds that it takes to turn to a checkpoint of a draft."""

    def turn_to(self, checkpoint: Hashable) -> Pending | None:
        """Make a checkpoint resident: whatever else is called uses its weights. None once it is, else what to wait for."""

    def draft(self, spec: ImageSpec) -> D:
        """Do the host's share, on any thread: read prompts, load weights, plan the steps, draw the noise."""

    def prepare(self, draft: D, snapshot: Snapshot | None = None) -> Preparation[R]:
        """Start to bring an image to its first step, or to its snapshot's: encode the prompts and the picture to start from."""

    def denoise(self, batch: Sequence[R]) -> None:
        """Make one UNet call for the whole batch and advance each image by one step."""

    def prepare_next_pass(self, image: R) -> Preparation[R]:
        """Start to bring an image from the end of a pass to the first step of the next. Until then it is in no batch."""

    def preview(self, image: R) -> PendingPixels:
        """Start a small preview of the unfinished image."""

    def decode(self, image: R) -> PendingPixels:
        """Start to decode finished latents."""


def run_alone(runner: Runner[D, R], spec: ImageSpec) -> Pixels:
    """Render one image without batching: the reference for what the engine must produce."""
    image = _prepared(runner, runner.prepare(runner.draft(spec)))
    while not image.is_over:
        if image.is_pass_over:
            image = _prepared(runner, runner.prepare_next_pass(image))
        else:
            runner.denoise([image])
    return runner.decode(image).pixels()


def _prepared(runner: Runner[D, R], preparation: Preparation[R]) -> R:
    """Finish a preparation, with the checkpoints that it asks for."""
    while True:
        while pending := runner.turn_to(preparation.checkpoint):
            pending.wait()
        if (image := preparation.poll()) is not None:
            return image
        preparation.wait()


class Engine(Generic[D, R]):
    """Continuous batching over one runner. `limits` bounds the samples of one UNet call."""

    def __init__(self, runner: Runner[D, R], *, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._runner = runner
        self._scheduler: BatchScheduler[Request] = BatchScheduler(limits)
        self._turns: Turns[Hashable] = Turns(runner.price_s)
        self._present: Hashable = None
        self._absent: dict[Hashable, Pending] = {}
        self._inbox: deque[tuple[Request, D]] = deque()
        self._preparing: dict[Request, Preparation[R]] = {}
        self._running: dict[Request, R] = {}
        self._decoding: deque[tuple[Request, PendingPixels]] = deque()
        self._clock = clock
        self._last_progress_at: float | None = None
        self.pace = Pace()
        self._changed = Condition()
        self._is_stopped = False
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the present tick, if there is one; every request in flight fails with `EngineStopped`."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._fail_all()

    def submit(self, spec: ImageSpec, snapshot: Snapshot | None = None, *, recall: Recall | None = None) -> Request:
        """Draft an image on this thread and queue it for the next tick; with a snapshot of the same image it resumes there.

        `recall` is asked for one once the draft has found out which weights it is to be of. Raises `EngineStopped`. Any other
        error, also one of the draft, is raised by `Request.result`.
        """
        request = Request(spec, snapshot)
        try:
            draft = self._runner.draft(spec)
            request.begin(draft, recall(draft.weights) if recall else None)
        except Exception as error:  # noqa: BLE001 - whoever waits for the result must hear of it
            request.fail(_as_render_error(error))
            return request
        with self._changed:
            if self._is_stopped:
                raise EngineStopped
            self._inbox.append((request, draft))
            self._changed.notify()
        return request

    @property
    def seconds_stuck(self) -> float:
        """Seconds since the present tick last reported progress; 0 while the engine is idle. Read by the watchdog."""
        last = self._last_progress_at
        return 0.0 if last is None else self._clock() - last

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs, busy or idle."""
        return self._thread.is_alive()

    def tick(self) -> None:
        """Schedule one batch, run its UNet call, postprocess its requests."""
        self._admit()
        self._drop_canceled()
        self._take_turns()
        began = self._clock()
        self._join_prepared()
        batch = self._scheduler.schedule(self._present)
        cost = sum(self._running[request].cost for request in batch)
        if batch:
            self._denoise(batch)
            for request in batch:
                self._after_step(request)
        self._finish_decoded(wait=not self._running and not self._preparing)
        if not batch:
            self._wait_for_oldest_work()
        self._turns.spent(self._clock() - began)
        if batch:
            self.pace = self.pace.after(self._clock() - began, cost=cost, images=len(batch))

    def _run(self) -> None:
        while self._wait_for_work():
            self._last_progress_at = self._clock()
            self.tick()
            self._last_progress_at = None

    def _report_progress(self) -> None:
        """Tell the watchdog that one act of a tick is over: on a CPU sixteen pictures are decoded in one, for minutes."""
        if self._last_progress_at is not None:
            self._last_progress_at = self._clock()

    def _wait_for_work(self) -> bool:
        """Wait for a request or for `stop`; False for the latter."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_work or self._is_stopped)
            return not self._is_stopped

    @property
    def _has_work(self) -> bool:
        return bool(self._inbox or self._preparing or self._running or self._decoding)

    def _admit(self) -> None:
        """Start the preparation of all newcomers; launches nothing yet, so raises nothing."""
        while self._inbox:
            request, draft = self._inbox.popleft()
            self._preparing[request] = self._runner.prepare(draft, request.snapshot)

    def _drop_canceled(self) -> None:
        for request in self._scheduler.requests():
            if request.is_canceled:
                self._remove(request, Canceled())
        for request in [request for request in self._preparing if request.is_canceled]:
            self._fail_preparing(request, Canceled())

    def _take_turns(self) -> None:
        """Make the checkpoint resident whose turn it is. One that cannot be costs its own requests alone."""
        self._absent = {one: pending for one, pending in self._absent.items() if not pending.is_ready}
        while (chosen := self._turns.choose(self._wanted())) is not None and chosen != self._present:
            # A picture that overflowed is decoded once more, by the VAE that is resident then.
            while self._decoding:
                self._finish_decoded(wait=True)
            try:
                pending = self._runner.turn_to(chosen)
            except Exception as error:  # noqa: BLE001 - as below
                self._present = None
                self._fail_of(chosen, _as_render_error(error))
                continue
            finally:
                self._report_progress()
            if pending is None:
                self._present = chosen
            else:
                self._present, self._absent[chosen] = None, pending

    def _wanted(self) -> list[Hashable]:
        """Return the checkpoints that requests need next, but for those that are being read again."""
        preparing = dict.fromkeys(preparation.checkpoint for preparation in self._preparing.values())
        return [one for one in self._scheduler.checkpoints() | preparing if one not in self._absent]

    def _fail_of(self, checkpoint: Hashable, error: Exception) -> None:
        """Fail all requests that need a checkpoint next."""
        for request in self._scheduler.of(checkpoint):
            self._remove(request, error)
        for request in [one for one, preparation in self._preparing.items() if preparation.checkpoint == checkpoint]:
            self._fail_preparing(request, error)

    def _join_prepared(self) -> None:
        """Advance preparations as far as they go without waiting; those that are done join the running requests.

        `poll` raises whatever encoding or upscaling raised (`OutOfMemory`, `NotANumber`, an unknown crash).
        """
        for request, preparation in list(self._preparing.items()):
            if preparation.checkpoint != self._present:
                continue
            self._report_progress()
            try:
                image = preparation.poll()
                if image is not None:
                    self._scheduler.add(
                        request, image.bucket, samples=image.samples, cost=image.cost, checkpoint=image.checkpoint
                    )
            except Exception as error:  # noqa: BLE001 - one bad request must not end the others
                self._fail_preparing(request, _as_render_error(error))
                continue
            if image is not None:
                del self._preparing[request]
                self._running[request] = image
                self._after_step(request)

    def _wait_for_oldest_work(self) -> None:
        """Wait for the pending piece of work of the oldest preparation, since there is nothing to denoise.

        Not for all of its pieces: meanwhile others may come, who need none, or go. `wait` raises only where the device breaks.
        """
        mine = [(one, its) for one, its in self._preparing.items() if its.checkpoint == self._present]
        if not mine and not self._wanted():
            for pending in list(self._absent.values())[:1]:
                pending.wait()
        for request, preparation in mine[:1]:
            self._wait_for(request, preparation)

    def _wait_for(self, request: Request, preparation: Preparation[R]) -> None:
        try:
            preparation.wait()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail_preparing(request, _as_render_error(error))

    def _fail_preparing(self, request: Request, error: Exception) -> None:
        del self._preparing[request]
        request.fail(error)

    def _denoise(self, batch: list[Request]) -> None:
        """Run the UNet call. A batch out of memory runs again, smaller, in a later tick; any other error fails all of it."""
        try:
            self._runner.denoise([self._running[request] for request in batch])
            self._scheduler.fitted(batch)
        except OutOfMemory as error:
            if self._scheduler.shrink(batch):
                log.warning("batch.shrunk", requests=len(batch))
            else:
                self._remove(batch[0], error)
        except Exception as error:  # noqa: BLE001 - the thread must outlive any batch
            for request in batch:
                self._remove(request, _as_render_error(error))

    def _after_step(self, request: Request) -> None:
        """Publish how far an image is, then start what comes next: a preview, its next pass or its decoding."""
        self._report_progress()
        image = self._running.get(request)
        if image is None:
            return
        request.steps_done, request.snapshot = image.steps_done, image.snapshot()
        if request.is_canceled:  # at once: whoever stands behind its last step is not to be in a batch again
            self._remove(request, Canceled())
            return
        try:
            self._start_next_stage(request, image)
        except Exception as error:  # noqa: BLE001 - as above
            self._remove(request, _as_render_error(error))

    def _start_next_stage(self, request: Request, image: R) -> None:
        """Move a request from running to preparing or decoding if its pass is over. Raises what the runner raises."""
        if image.is_pass_over and not image.is_over:
            self._remove(request)
            self._preparing[request] = self._runner.prepare_next_pass(image)
        elif image.is_over:
            self._decoding.append((request, self._runner.decode(image)))
            self._remove(request)
        elif request.wants_preview:
            self._start_preview(request, image)

    def _start_preview(self, request: Request, image: R) -> None:
        """Start a preview. An error, as where memory is nearly full, costs the preview and never the image."""
        request.wants_preview = False
        try:
            request.preview = self._runner.preview(image)
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("preview.failed", error=f"{type(error).__name__}: {error}"[:500])

    def _finish_decoded(self, *, wait: bool) -> None:
        """Finish the requests whose pixels are on the host, oldest first; with `wait`, wait for the first of them.

        `is_ready` raises where the device breaks, `pixels` also `NotANumber`, or `OutOfMemory` of the retry in fp32.
        """
        while self._decoding:
            request, pending = self._decoding[0]
            self._report_progress()
            try:
                if request.is_canceled:
                    request.fail(Canceled())
                elif wait or pending.is_ready:
                    request.finish(pending.pixels())
                    wait = False
                else:
                    return
            except Exception as error:  # noqa: BLE001 - as above
                request.fail(_as_render_error(error))
            self._decoding.popleft()

    def _remove(self, request: Request, error: Exception | None = None) -> None:
        """Take a request out of the running ones, and fail it with the error if there is one."""
        self._scheduler.remove(request)
        del self._running[request]
        if error is not None:
            request.fail(error)

    def _fail_all(self) -> None:
        queued = [request for request, _ in [*self._inbox, *self._decoding]]
        for request in [*self._running, *self._preparing, *queued]:
            request.fail(EngineStopped())


def _as_render_error(error: Exception) -> Exception:
    if isinstance(error, FarmError):
        return error
    log.error("engine.request_crashed", exc_info=error)
    return RenderFailed(f"The engine met an unexpected {type(error).__name__}; the worker's log has the details.")
