"""A compiled twin of the UNet, for the call shapes that are in use.

Compiling one shape takes a minute or more and is done aside, by one thread; until a shape is ready the plain UNet does its work.
The twin shares the weights but not the modules: LoRA hooks come and go on the plain UNet while the twin is being traced.

Tracing is no affair of one thread: torch replaces methods of `torch.nn.Module` itself meanwhile, and tells every thread that it
compiles. What that would do to whoever renders is mended here and in `conditioning`.
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
    """Answers calls whose shape has been compiled and has the others compiled for the next time.

    `rows` are the sizes that calls are filled up to, ascending; `backend` is torch.compile's.
    CUDA graphs are left to it: its own are bound to the thread that recorded them.
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
        self._asked: set[Shape] = set()
        self._ready: set[Shape] = set()
        self._wanted: Queue[tuple[Shape, Tensor, Tensor]] = Queue()
        Thread(target=self._compile, name="compiler", daemon=True).start()

    def predict(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor | None:
        """Return the UNet's output for x (rows, channels, h, w), or None while this shape is not ready.

        Asks for inference mode, in which shapes are compiled: outside of it nothing compiled fits.
        """
        rows = next((rows for rows in self._rows if rows >= len(x)), None)
        if rows is None:
            return None
        _, channels, height, width = x.shape
        shape = (rows, channels, height, width, context.shape[1])
        if shape not in self._ready:
            self._ask(shape, x, context)
            return None
        return _output(self._compiled, *(_filled(part, rows) for part in (x, timesteps, context)))[: len(x)]

    @property
    def is_busy(self) -> bool:
        """Whether something is being compiled, or waits to be. An ordinary exit would crash in the compiler's own threads."""
        return self._wanted.unfinished_tasks > 0

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until every shape that was asked for is compiled or given up. False when the time is up before that."""
        with self._wanted.all_tasks_done:
            return self._wanted.all_tasks_done.wait_for(lambda: not self._wanted.unfinished_tasks, timeout_s)

    def _ask(self, shape: Shape, x: Tensor, context: Tensor) -> None:
        if shape not in self._asked and len(self._asked) < MAX_SHAPES:
            self._asked.add(shape)
            rows, channels, height, width, tokens = shape
            self._wanted.put(
                (shape, x.new_zeros(rows, channels, height, width), context.new_zeros(rows, tokens, context.shape[2]))
            )

    @torch.inference_mode()
    def _compile(self) -> None:
        # Torch keeps its settings by thread.
        torch._dynamo.config.recompile_limit = MAX_SHAPES
        torch._dynamo.config.accumulated_recompile_limit = 4 * MAX_SHAPES
        while True:
            shape, x, context = self._wanted.get()
            began = time.monotonic()
            try:
                # The second call runs what the first one compiled, on whatever it still has to set up.
                for _ in range(2):
                    _output(self._compiling, x, torch.full((shape[0],), 500.0, device=x.device), context)
            except Exception as error:  # noqa: BLE001 - the plain UNet goes on; a compiler may fail in any way
                log.warning("unet.not_compiled", shape=shape, error=f"{type(error).__name__}: {error}"[:500])
            else:
                self._ready.add(shape)
                log.info("unet.compiled", shape=shape, seconds=round(time.monotonic() - began, 1))
            finally:
                self._wanted.task_done()


def _output(unet: Any, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
    output: Tensor = unet(x, timesteps, encoder_hidden_states=context, return_dict=False)[0]
    return output


def _trace_ahead() -> None:
    """Trace now, before anyone renders, what the inductor would trace with its first shape.

    This one trace takes every module that is called meanwhile, on any thread, for a part of what it traces, and raises there.
    """
    from torch._inductor.loop_body import InterpreterShim

    InterpreterShim._dummy_gm()


def _twin(unet: Any) -> Any:
    shared = {id(tensor): tensor for tensor in itertools.chain(unet.parameters(), unet.buffers())}
    twin = copy.deepcopy(unet, shared)
    division.put_back(twin)
    return twin


def _filled(part: Tensor, rows: int) -> Tensor:
    """Fill up with zeros. What lies in memory in another order does not fit what was compiled."""
    missing = rows - len(part)
    return (torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part).contiguous()
