"""torch.compile of the UNet, one call shape at a time, on a thread beside the engine's.

The life of a shape, for example two images with guidance at 512 px, 4 rows of 64 by 64 latents and 77 tokens:

1. `predict` sees the shape for the first time, queues it and returns None; the plain UNet makes the call.
2. The compiler thread calls the compiled twin with zeros of that shape, which takes a minute or more.
3. From then on `predict` runs what was compiled; calls of 3 rows are padded to these 4.

The twin is a copy of the UNet's modules that shares its weights: LoRA hooks come and go on the plain UNet while torch traces the
twin. Tracing affects the other threads, too: torch meanwhile replaces methods of `torch.nn.Module` itself, and answers every
thread that asks that it is compiling. `_trace_ahead`, `_compiled` and `conditioning._captured` keep that from the renders.
"""

import copy
import itertools
import time
from collections.abc import Sequence
from queue import Queue
from threading import Thread
from typing import Any

import structlog
import torch
from torch import Tensor

from worker.diffusion import division

# Rows of a compiled call; a batch is filled up to the next. More sizes would waste fewer rows and never be done compiling.
ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Past its limit of shapes torch quietly stops compiling; ours are bounded by MAX_SHAPES.
MAX_SHAPES = 64

# rows, channels, latent height and width, tokens
Shape = tuple[int, int, int, int, int]

log = structlog.get_logger(__name__)


class CompiledUNet:
    """Makes calls of compiled shapes and queues the others for compilation.

    `rows` are the batch sizes that calls are padded to, ascending; `backend` is torch.compile's.
    No mode of it that uses CUDA graphs: torch's are bound to the thread that recorded them.
    """

    def __init__(self, unet: Any, *, rows: Sequence[int] = ROWS, backend: Any = "inductor") -> None:
        self._rows = rows
        twin = _twin(unet)
        self._compiling = torch.compile(twin, dynamic=False, backend=backend)
        # Runs what has been compiled and compiles nothing: a trace on the other thread makes torch's guards fail on this one,
        # which would wait for it and then compile its own shape a second time. The twin as it is answers meanwhile.
        self._compiled = torch._dynamo.run(twin)
        if backend == "inductor":
            _trace_ahead()
        self._queued: set[Shape] = set()
        self._ready: set[Shape] = set()
        self._queue: Queue[tuple[Shape, Tensor, Tensor] | None] = Queue()
        Thread(target=self._run, name="compiler", daemon=True).start()

    def predict(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor | None:
        """Return the UNet's output for x (rows, channels, h, w), or None while this shape is not compiled.

        Call it in inference mode, in which shapes are compiled: torch's guards refuse them outside of it.
        """
        rows = next((rows for rows in self._rows if rows >= len(x)), None)
        if rows is None:
            return None
        _, channels, height, width = x.shape
        shape = (rows, channels, height, width, context.shape[1])
        if shape not in self._ready:
            self._enqueue(shape, x, context)
            return None
        return _output(self._compiled, *(_padded(part, rows) for part in (x, timesteps, context)))[: len(x)]

    @property
    def is_busy(self) -> bool:
        """Whether a shape is queued or compiling. An ordinary exit would then crash in the compiler's own threads."""
        return self._queue.unfinished_tasks > 0

    def close(self) -> None:
        """End the thread once it has compiled what is queued, so that nothing holds on to the weights any more."""
        self._queue.put(None)

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until every queued shape is compiled or has failed to; False after `timeout_s`."""
        with self._queue.all_tasks_done:
            return self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, timeout_s)

    def _enqueue(self, shape: Shape, x: Tensor, context: Tensor) -> None:
        if shape not in self._queued and len(self._queued) < MAX_SHAPES:
            self._queued.add(shape)
            rows, channels, height, width, tokens = shape
            self._queue.put(
                (shape, x.new_zeros(rows, channels, height, width), context.new_zeros(rows, tokens, context.shape[2]))
            )

    @torch.inference_mode()
    def _run(self) -> None:
        # Torch keeps its settings by thread.
        torch._dynamo.config.recompile_limit = MAX_SHAPES
        torch._dynamo.config.accumulated_recompile_limit = 4 * MAX_SHAPES
        while True:
            job = self._queue.get()
            try:
                if job is None:
                    return
                self._compile(*job)
            except Exception as error:  # noqa: BLE001 - the plain UNet goes on; a compiler may fail in any way
                log.warning("unet.not_compiled", shape=job and job[0], error=f"{type(error).__name__}: {error}"[:500])
            finally:
                self._queue.task_done()

    def _compile(self, shape: Shape, x: Tensor, context: Tensor) -> None:
        began = time.monotonic()
        # The second call runs what the first one compiled, on whatever it still has to set up.
        for _ in range(2):
            _output(self._compiling, x, torch.full((shape[0],), 500.0, device=x.device), context)
        self._ready.add(shape)
        log.info("unet.compiled", shape=shape, seconds=round(time.monotonic() - began, 1))


def _output(unet: Any, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    output: Tensor = unet(x, timesteps, encoder_hidden_states=context, return_dict=False)[0]
    return output


def _trace_ahead() -> None:
    """Make the inductor's first symbolic trace now, before any render: one of a dummy function, which it caches.

    A symbolic trace takes every module that any thread calls meanwhile for a part of it, and raises in that thread.
    """
    from torch._inductor.loop_body import InterpreterShim

    InterpreterShim._dummy_gm()


def _twin(unet: Any) -> Any:
    """Copy a UNet's modules, not its weights."""
    shared = {id(tensor): tensor for tensor in itertools.chain(unet.parameters(), unet.buffers())}
    twin = copy.deepcopy(unet, shared)
    division.put_back(twin)
    return twin


def _padded(part: Tensor, rows: int) -> Tensor:
    """Pad with rows of zeros, contiguous: compiled code accepts only the memory order that it was compiled for."""
    missing = rows - len(part)
    return (torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part).contiguous()
