"""The compiled UNet beside the plain one. The real tracing runs; only the code generator, which takes minutes, is left out."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, current_thread
from typing import Any, Literal

import pytest
import torch
from torch._inductor.loop_body import InterpreterShim
from torch.fx.experimental.proxy_tensor import make_fx

from shared.files import checkpoints
from shared.settings import Settings
from tests.support import adapters, studio
from tests.support.waiting import LIMIT_S
from tests.support.walking import SAME, distance
from worker import device
from worker.diffusion.compiled import MAX_SHAPES, ROWS, CompiledUNet
from worker.engine.engine import run_alone
from worker.engine.runner import DiffusionRunner

TOKENS, WIDTH = 7, adapters.WIDTH


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def unet() -> Any:
    return studio.doubled(studio.small()).unet


def call(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 4, 8, 8, generator=generator, dtype=torch.float64)
    context = torch.randn(rows, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.full((rows,), 500.0), context


def plain(unet: Any, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = unet(x, timesteps, encoder_hidden_states=context, return_dict=False)[0]
    return output


def test_the_plain_unet_works_while_the_twin_compiles_and_agrees_with_it_afterwards(unet: Any) -> None:
    compiled = CompiledUNet(unet, backend="aot_eager")
    wanted = {rows: plain(unet, *call(rows)) for rows in (1, 2, 3, 4)}
    calls = 0
    while (found := compiled.predict(*call(3))) is None:
        # Tracing patches what all modules share; the other thread must not notice.
        torch.testing.assert_close(plain(unet, *call(2)), wanted[2])
        calls += 1
    assert calls > 0
    assert distance(found, wanted[3]) < SAME
    # Three rows were filled up to four, so four are ready too; two are another shape.
    four = compiled.predict(*call(4))
    assert four is not None
    assert distance(four, wanted[4]) < SAME
    assert compiled.predict(*call(2)) is None
    compiled.settle()  # a trace that goes on would meet the next test


def test_the_twin_shares_the_weights(unet: Any) -> None:
    twin: Any = CompiledUNet(unet, backend="eager")._compiled
    assert {parameter.data_ptr() for parameter in twin.parameters()} == {
        parameter.data_ptr() for parameter in unet.parameters()
    }


def test_what_cannot_be_compiled_stays_with_the_plain_unet(unet: Any) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler here")

    compiled = CompiledUNet(unet, backend=broken)
    for _ in range(2):
        assert compiled.predict(*call(2)) is None
        compiled.settle()
    too_many = call(max(ROWS) + 1)
    assert compiled.predict(*too_many) is None


class Counting:
    """A code generator that counts the shapes it was asked for and the calls of what it made."""

    def __init__(self) -> None:
        self.shapes = 0
        self.calls = 0

    def __call__(self, graph: Any, _examples: Any) -> Any:
        self.shapes += 1

        def run(*inputs: Any) -> Any:
            self.calls += 1
            return graph(*inputs)

        return run


class Toy(torch.nn.Module):
    """Called as a UNet is, and traced in no time."""

    def forward(
        self, x: Any, timesteps: Any, encoder_hidden_states: Any, return_dict: bool, encoder_attention_mask: Any = None
    ) -> tuple[torch.Tensor]:
        assert not return_dict
        assert encoder_attention_mask is None
        return (x * timesteps[:, None, None, None] + encoder_hidden_states.mean(),)


def test_every_shape_is_compiled_and_none_on_the_engines_thread() -> None:
    """Torch gives up, and says nothing, after so many shapes; and other strides are another shape to it."""
    backend = Counting()
    compiled = CompiledUNet(Toy(), backend=backend)
    for rows in ROWS:
        assert compiled.predict(*call(rows)) is None
    compiled.settle()
    assert backend.shapes == len(ROWS)
    backend.calls = 0
    for rows in ROWS:
        x, timesteps, context = call(rows)
        for order in (torch.contiguous_format, torch.channels_last):
            assert compiled.predict(x.contiguous(memory_format=order), timesteps, context) is not None
    assert backend.calls == 2 * len(ROWS)
    assert backend.shapes == len(ROWS)


class Guarded(Toy):
    """As diffusers' models are: their attributes are looked up by `torch.nn.Module`, which the compiled code is guarded for."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(()))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def forward(self, x: Any, *rest: Any, **how: Any) -> tuple[torch.Tensor]:
        return (super().forward(x, *rest, **how)[0] * self.one,)


def test_a_trace_on_one_thread_makes_no_other_compile() -> None:
    """Tracing replaces methods of all modules, for seconds; what has been compiled does not fit meanwhile."""
    threads: list[str] = []
    tracing, seen = Event(), Event()

    def hold(x: torch.Tensor) -> torch.Tensor:
        tracing.set()
        seen.wait(LIMIT_S)
        return x

    def backend(graph: Any, _examples: Any) -> Any:
        threads.append(current_thread().name)
        if len(threads) == 2:
            make_fx(hold)(torch.ones(()))
        return graph

    compiled = CompiledUNet(Guarded(), backend=backend)
    for rows in (2, 4):
        assert compiled.predict(*call(rows)) is None
    assert tracing.wait(LIMIT_S)
    found = compiled.predict(*call(2))
    seen.set()
    assert compiled.settle()
    assert threads == ["compiler", "compiler"]
    assert found is not None
    x, timesteps, context = call(2)
    torch.testing.assert_close(found, Guarded()(x, timesteps, context, return_dict=False)[0])


def test_the_inductor_traces_its_own_module_before_anyone_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that another thread called during that trace would raise."""
    InterpreterShim._dummy_gm.cache_clear()
    CompiledUNet(Toy(), backend="inductor")
    monkeypatch.setattr(torch.fx.Tracer, "trace", None)
    assert InterpreterShim._dummy_gm() is not None


@pytest.mark.parametrize("guidance_scale", [1.0, 7.0])
def test_all_that_an_engine_asks_for_fits_what_was_compiled(guidance_scale: float) -> None:
    """Memory order, kind of tensor, mode, number of threads: whatever else compiled code is guarded for."""
    backend = Counting()
    toy = Toy()
    toy.config = studio.demo().unet.config
    compiled = CompiledUNet(toy, backend=backend)
    runner = DiffusionRunner.of(replace(studio.demo(), unet=toy), compiled=compiled)
    batches = (1, 2, 3, 5, 8, 12, 16, 24, 32)
    for _ in range(2):
        backend.calls = 0
        for images in batches:
            spec = studio.spec(width=64, height=72, steps=1, guidance_scale=guidance_scale)
            runner.denoise([runner.prepare(runner.draft(spec)).result() for _ in range(images)])
        compiled.settle()
    assert backend.calls == len(batches)


def test_whoever_would_leave_learns_that_something_is_being_compiled() -> None:
    go_on = Event()

    def slow(graph: Any, _examples: Any) -> Any:
        assert go_on.wait(LIMIT_S)
        return graph

    compiled = CompiledUNet(Toy(), backend=slow)
    assert not compiled.is_busy
    assert compiled.predict(*call(2)) is None
    assert compiled.is_busy
    assert not compiled.settle(timeout_s=0.01)
    go_on.set()
    assert compiled.settle()
    assert not compiled.is_busy


def test_the_number_of_shapes_is_bounded(unet: Any) -> None:
    compiled = CompiledUNet(unet, backend="eager")
    compiled._queued.update((1, 4, side, side, TOKENS) for side in range(1000, 1000 + MAX_SHAPES))
    assert compiled.predict(*call(2)) is None
    assert len(compiled._queued) == MAX_SHAPES


def test_an_engine_goes_over_to_the_twin_and_draws_the_same_picture() -> None:
    compiled = CompiledUNet(studio.small().unet, backend="eager")
    runner = DiffusionRunner.of(studio.small(), compiled=compiled)
    spec = studio.spec(width=64, height=64, steps=2)
    alone = run_alone(DiffusionRunner.of(studio.small()), spec)
    with studio.running(runner) as engine:
        for _ in range(2):
            drawn = engine.submit(spec).result(None)
            assert abs(drawn.astype(int) - alone.astype(int)).max() <= 1  # where rounding crosses from level to level
            compiled.settle()
    assert compiled._ready


@pytest.mark.parametrize("batching", ["continuous", "strict"])
def test_a_worker_compiles_where_it_is_told_to(
    batching: Literal["continuous", "strict"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in strict mode: the rows of a call must not decide how it is rounded."""
    made: list[CompiledUNet] = []

    def compiled(unet: Any) -> CompiledUNet:
        made.append(CompiledUNet(unet, backend="eager"))
        return made[-1]

    monkeypatch.setattr(device, "CompiledUNet", compiled)
    monkeypatch.setattr(torch, "set_num_threads", lambda _threads: None)
    settings = Settings(compile=True, batching=batching, device="cpu", profile_seconds=0, cache_dir=tmp_path)
    bundle = device.load(settings, checkpoints.inspect(studio.DEMO))
    bundle.engine.start()
    try:
        bundle.engine.submit(studio.spec(width=64, height=64, steps=1)).result(None)
    finally:
        bundle.engine.stop()
    assert [len(one._queued) for one in made] == ([1] if batching == "continuous" else [])
    assert all(one.settle() for one in made)
    assert not bundle.is_compiling()
