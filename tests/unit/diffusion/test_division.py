"""Divisions by one that are left out: none is made, no bit differs, and who compiles has them back."""

import copy
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests.support.studio import demo
from worker.diffusion import division

DIVISIONS = {torch.Tensor.div, torch.Tensor.__truediv__, torch.div}


class Counting(TorchFunctionMode):
    """Counts divisions by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.made += func in DIVISIONS and isinstance(args[1], float)
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def divided(act: Any, *args: Any, **how: Any) -> tuple[torch.Tensor, int]:
    with Counting() as counting:
        output = act(*args, **how, return_dict=False)[0]
    return output, counting.made


def unet_call(unet: Any) -> tuple[torch.Tensor, int]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator)
    return divided(unet, x, torch.full((2,), 500.0), encoder_hidden_states=context)


def vae_call(vae: Any) -> tuple[torch.Tensor, int]:
    return divided(vae.decode, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("module", "call"), [("unet", unet_call), ("vae", vae_call)])
def test_no_bit_differs_without(module: str, call: Any) -> None:
    loaded = getattr(demo(), module)
    usual = copy.deepcopy(loaded)
    division.put_back(usual)
    expected, all_of_them = call(usual)
    output, left = call(loaded)
    assert torch.equal(output, expected)
    assert all_of_them - left >= 10
    assert left == 0


def test_a_factor_that_is_not_one_divides() -> None:
    part: Any = torch.nn.Module()
    part.output_scale_factor, part.rescale_output_factor = 2.0, 1
    division.leave_out(part)
    assert torch.equal(torch.ones(1) / part.output_scale_factor, torch.full((1,), 0.5))
    assert torch.equal(torch.ones(1) / part.rescale_output_factor, torch.ones(1))
    division.put_back(part)
    assert [part.output_scale_factor, part.rescale_output_factor] == [2.0, 1.0]
