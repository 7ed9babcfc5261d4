"""The compiled UNet beside the plain one. The real tracing runs; only the code generator, which takes minutes, is left out."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests import studio
from worker.diffusion.compiled import MAX_SHAPES, ROWS, CompiledUNet
from worker.engine.engine import run_alone
from worker.engine.runner import DiffusionRunner

TOKENS, WIDTH = 7, 32


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    tiny: Any = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return tiny.eval().requires_grad_(False)


def call(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 4, 8, 8, generator=generator)
    return x, torch.full((rows,), 500.0), torch.randn(rows, TOKENS, WIDTH, generator=generator)


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
    torch.testing.assert_close(found, wanted[3], rtol=1e-4, atol=1e-5)
    # Three rows were filled up to four, so four are ready too; two are another shape.
    four = compiled.predict(*call(4))
    assert four is not None
    torch.testing.assert_close(four, wanted[4], rtol=1e-4, atol=1e-5)
    assert compiled.predict(*call(2)) is None


def test_the_twin_shares_the_weights(unet: Any) -> None:
    twin: Any = CompiledUNet(unet, backend="eager")._unet
    assert {parameter.data_ptr() for parameter in twin.parameters()} == {
        parameter.data_ptr() for parameter in unet.parameters()
    }


def test_what_cannot_be_compiled_stays_with_the_plain_unet(unet: Any) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler here")

    compiled = CompiledUNet(unet, backend=broken)  # type: ignore[arg-type]
    for _ in range(2):
        assert compiled.predict(*call(2)) is None
        compiled.settle()
    too_many = call(max(ROWS) + 1)
    assert compiled.predict(*too_many) is None


def test_the_number_of_shapes_is_bounded(unet: Any) -> None:
    compiled = CompiledUNet(unet, backend="eager")
    compiled._asked.update((1, 4, side, side, TOKENS) for side in range(1000, 1000 + MAX_SHAPES))
    assert compiled.predict(*call(2)) is None
    assert len(compiled._asked) == MAX_SHAPES


def test_an_engine_goes_over_to_the_twin_and_draws_the_same_picture() -> None:
    compiled = CompiledUNet(studio.demo().unet, backend="eager")
    runner = DiffusionRunner.of(studio.demo(), compiled=compiled)
    spec = studio.spec(width=64, height=64, steps=2)
    alone = run_alone(DiffusionRunner.of(studio.demo()), spec)
    with studio.running(runner) as engine:
        for _ in range(2):
            drawn = engine.submit(spec).result(None)
            assert abs(drawn.astype(int) - alone.astype(int)).max() <= 1
            compiled.settle()
    assert compiled._ready
