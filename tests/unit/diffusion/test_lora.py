"""LoRAs as files and in the module: equal to peft's, equal alone and side by side in one batch, gone without a trace."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from shared.errors import BadWeights, OutOfMemory, WeightsMissing
from shared.files.weights import Kind, Shelf, WeightsFile
from tests.support.adapters import WIDTH, as_diffusers, as_kohya, random_lora, written
from tests.support.studio import demo as demo_in_float32
from tests.support.studio import doubled
from tests.support.walking import SAME, distance
from worker.diffusion import checkpoint_loader, lora, lora_file
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.lora import Adapters, LoraShelf, Mix
from worker.diffusion.lora_file import LoadedLora, load

PLAIN = 1e-3  # seen at a glance: what a LoRA must change at least to be told from none
DELTAS = {seed: random_lora(seed) for seed in (1, 2)}


@cache
def demo() -> LoadedCheckpoint:
    """The demo checkpoint in float64, where no bound depends on a processor's rounding."""
    return doubled(demo_in_float32())


def loaded(tmp_path: Path, tensors: Mapping[str, Tensor], name: str = "one") -> LoadedLora:
    return load(written(tmp_path / f"{name}.safetensors", tensors), demo())


@torch.inference_mode()
def unet_output(samples: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(samples, 4, 8, 8, generator=generator).double()
    context = torch.randn(samples, 77, WIDTH, generator=generator).double()
    output: Tensor = demo().unet(x, torch.full((samples,), 500.0), encoder_hidden_states=context, return_dict=False)[0]
    return output


@torch.inference_mode()
def text_output() -> Tensor:
    ids = demo().tokenizer("a red circle", return_tensors="pt").input_ids
    states: Tensor = demo().text_encoder(ids).last_hidden_state
    return states


def with_mix(mix: Mix | None, side: str = "unet") -> Tensor:
    with Adapters(getattr(demo(), side), side).applied([(1, mix)]):
        return unet_output() if side == "unet" else text_output()


def by_peft(tensors: Mapping[str, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    """What diffusers' own loader makes of the file, on a checkpoint of its own."""
    from shared.files import checkpoints
    from tests.support.studio import CPU, DEMO

    own = doubled(checkpoint_loader.load(checkpoints.inspect(DEMO), CPU, torch.float32))
    pipeline: Any = StableDiffusionPipeline(
        vae=own.vae,
        text_encoder=own.text_encoder,
        tokenizer=own.tokenizer,
        unet=own.unet,
        scheduler=DDIMScheduler.from_config(own.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_lora_weights(dict(tensors), adapter_name="one")
    pipeline.set_adapters("one", weight)
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        x, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, WIDTH, generator=generator)
        unet = own.unet(x.double(), torch.full((1,), 500.0), encoder_hidden_states=context.double(), return_dict=False)[
            0
        ]
        ids = own.tokenizer("a red circle", return_tensors="pt").input_ids
        return unet, own.text_encoder(ids).last_hidden_state


@pytest.mark.parametrize("weight", [0.5, -1.0])
@pytest.mark.parametrize("spelling", ["kohya", "diffusers"])
def test_a_lora_does_what_peft_makes_of_it(tmp_path: Path, spelling: str, weight: float) -> None:
    tensors = as_kohya(DELTAS[1], alpha=2.0) if spelling == "kohya" else as_diffusers(DELTAS[1])
    lora = loaded(tmp_path, tensors)
    unet, text = by_peft(tensors, weight)
    mix = Mix.of([(lora, weight)])
    assert distance(with_mix(mix), unet) < SAME
    assert distance(with_mix(mix, "text_encoder"), text) < SAME
    assert distance(unet_output(), unet) > PLAIN


def test_no_weight_is_no_lora(tmp_path: Path) -> None:
    assert Mix.of([(loaded(tmp_path, as_diffusers(DELTAS[1])), 0.0)]) is None


def test_a_lora_named_twice_acts_by_the_sum_of_its_weights(tmp_path: Path) -> None:
    lora = loaded(tmp_path, as_kohya(DELTAS[1], alpha=2.0))
    twice, once = Mix.of([(lora, 1.5), (lora, -0.75)]), Mix.of([(lora, 0.75)])
    assert distance(with_mix(twice), with_mix(once)) < SAME
    assert distance(with_mix(once), unet_output()) > PLAIN
    assert distance(with_mix(Mix.of([(lora, 1.0), (lora, -1.0)])), unet_output()) < SAME


def test_side_by_side_as_alone_and_then_gone(tmp_path: Path) -> None:
    one, two = (loaded(tmp_path, as_diffusers(DELTAS[seed]), str(seed)) for seed in (1, 2))
    mixes: Sequence[Mix | None] = [
        Mix.of([(one, 1.0)]),
        None,
        Mix.of([(two, 0.5)]),
        Mix.of([(two, 0.5)]),
        Mix.of([(one, 1.0), (two, -0.5)]),
    ]
    bare = unet_output(5)
    adapters = Adapters(demo().unet, "unet")
    with adapters.applied([(1, mix) for mix in mixes]):
        mixed = unet_output(5)
    for row, mix in enumerate(mixes):
        with adapters.applied([(1, mix)]):
            assert distance(mixed[row], unet_output(5)[row]) < SAME
    assert torch.equal(unet_output(5), bare)
    assert len({tuple(row.flatten()[:8].tolist()) for row in mixed}) == 5


def test_an_error_inside_leaves_the_module_clean(tmp_path: Path) -> None:
    bare = unet_output()
    adapters = Adapters(demo().unet, "unet")
    with (
        pytest.raises(ZeroDivisionError),
        adapters.applied([(1, Mix.of([(loaded(tmp_path, as_diffusers(DELTAS[1])), 1.0)]))]),
    ):
        raise ZeroDivisionError
    assert torch.equal(unet_output(), bare)


def shifted(path: str, delta: Tensor) -> Tensor:
    """What the UNet says with a delta added to one layer's weight for good."""
    layer = demo().unet.get_submodule(path)
    before = layer.weight.data
    layer.weight.data = before + delta
    try:
        return unet_output()
    finally:
        layer.weight.data = before


def conv_path() -> str:
    return next(
        path
        for path, layer in demo().unet.named_modules()
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3) and layer.stride == (2, 2)
    )


def test_convolutions_of_a_locon(tmp_path: Path) -> None:
    path, generator = conv_path(), torch.Generator().manual_seed(3)
    shape = demo().unet.get_submodule(path).weight.shape
    down, up = torch.randn(2, *shape[1:], generator=generator), torch.randn(shape[0], 2, 1, 1, generator=generator)
    stem = f"lora_unet_{path.replace('.', '_')}"
    lora = loaded(
        tmp_path, {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
    )
    delta = torch.einsum("or,rihw->oihw", up[:, :, 0, 0].double(), down.double()) * 0.5
    assert distance(with_mix(Mix.of([(lora, 1.0)])), shifted(path, delta)) < SAME


def test_hadamard_products_of_a_loha(tmp_path: Path) -> None:
    path, generator = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k", torch.Generator().manual_seed(3)
    out, into = demo().unet.get_submodule(path).weight.shape
    halves = [torch.randn(*shape, generator=generator) * 0.5 for shape in ((out, 2), (2, into), (out, 2), (2, into))]
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    stem = f"lora_unet_{path.replace('.', '_')}"
    lora = loaded(tmp_path, {f"{stem}.{name}": half for name, half in zip(names, halves, strict=True)})
    one, two, three, four = (half.double() for half in halves)
    expected = shifted(path, 0.7 * (one @ two) * (three @ four))
    apart, effect = distance(with_mix(Mix.of([(lora, 0.7)])), expected), distance(unet_output(), expected)
    # The farm multiplies the halves in float32: seven roundings of 2^-24 of what they change.
    assert apart < 8 * 2.0**-24 * effect


BAD: list[tuple[str, dict[str, Tensor], str]] = [
    ("nothing of ours", {"lora_unet_input_blocks_4_1_x.lora_down.weight": torch.zeros(4, 48)}, "another architecture"),
    ("no number", {**as_diffusers(DELTAS[1]), "unet.x.lora_A.weight": torch.zeros(1)}, ""),
    (
        "too wide",
        {
            name: torch.cat([tensor, tensor], dim=1)
            for name, tensor in as_diffusers(DELTAS[1]).items()
            if "attn1" in name
        },
        "does not fit",
    ),
    (
        "one half",
        {name: tensor for name, tensor in as_diffusers(DELTAS[1]).items() if "lora_A" in name},
        "only some of its parts",
    ),
    ("dora", {**as_kohya(DELTAS[1], alpha=1.0), "lora_unet_x.dora_scale": torch.ones(1)}, "DoRA"),
    ("blown up", {name: tensor * float("nan") for name, tensor in as_diffusers(DELTAS[1]).items()}, "not-a-number"),
]


@pytest.mark.parametrize(
    ("what", "tensors", "message"), [bad for bad in BAD if bad[2]], ids=[bad[0] for bad in BAD if bad[2]]
)
def test_what_cannot_be_applied_is_refused_in_one_line(
    tmp_path: Path, what: str, tensors: dict[str, Tensor], message: str
) -> None:
    file = written(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(BadWeights, match=message) as refused:
        load(file, demo())
    assert "bad.safetensors" in str(refused.value)
    assert "\n" not in str(refused.value), what


def test_a_file_that_is_cut_while_the_worker_runs_stays_usable_from_memory(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    written(path, as_diffusers(DELTAS[1]))
    now = 0.0
    shelf = Shelf(Kind.LORA, tmp_path, context_width=WIDTH, clock=lambda: now)
    loras = LoraShelf(shelf, memory_bytes=10**9)
    lora = loras.get("one", demo(), "demo")
    assert loras.get("one", demo(), "demo") is lora
    before = with_mix(Mix.of([(lora, 1.0)]))
    path.write_bytes(path.read_bytes()[:1000])
    assert torch.equal(with_mix(Mix.of([(lora, 1.0)])), before)
    now = 10.0
    assert loras.get("one", demo(), "demo") is lora
    with pytest.raises(BadWeights, match="truncated"):
        LoraShelf(shelf, memory_bytes=0).get("one", demo(), "demo")
    with pytest.raises(WeightsMissing, match="no lora named 'two'"):
        loras.get("two", demo(), "demo")


def test_memory_is_bounded_and_the_last_used_stay(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        written(tmp_path / f"{name}.safetensors", as_diffusers(DELTAS[1]))
    loras = LoraShelf(Shelf(Kind.LORA, tmp_path, context_width=WIDTH), memory_bytes=0)
    one = loras.get("a", demo(), "demo").size_bytes
    loras = LoraShelf(Shelf(Kind.LORA, tmp_path, context_width=WIDTH), memory_bytes=2 * one)
    first, second = loras.get("a", demo(), "demo"), loras.get("b", demo(), "demo")
    assert loras.get("a", demo(), "demo") is first
    loras.get("c", demo(), "demo")
    assert loras.get("a", demo(), "demo") is first
    assert loras.get("b", demo(), "demo") is not second


@pytest.mark.parametrize("shortages", [1, 2])
def test_a_lora_that_does_not_fit_takes_the_place_of_those_that_nobody_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortages: int
) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.safetensors", as_diffusers(DELTAS[1]))
    loras = LoraShelf(Shelf(Kind.LORA, tmp_path, context_width=WIDTH), memory_bytes=2**30)
    unused = loras.get("a", demo(), "demo")
    left = [OutOfMemory("no more")] * shortages

    def full(file: WeightsFile, checkpoint: LoadedCheckpoint) -> LoadedLora:
        if left:
            raise left.pop()
        return load(file, checkpoint)

    monkeypatch.setattr(lora, "load", full)
    if shortages == 1:
        assert loras.get("b", demo(), "demo").size_bytes
        assert loras.get("a", demo(), "demo") is not unused
    else:
        with pytest.raises(OutOfMemory, match="no more"):
            loras.get("b", demo(), "demo")
        assert loras.get("b", demo(), "demo").size_bytes  # the next one may fit


def test_a_lora_that_does_not_fit_is_not_called_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    written(tmp_path / "a.safetensors", as_diffusers(DELTAS[1]))
    monkeypatch.setattr(lora_file, "_parsed", full)
    with pytest.raises(OutOfMemory, match="The LoRA a does not fit"):
        LoraShelf(Shelf(Kind.LORA, tmp_path, context_width=WIDTH), memory_bytes=2**30).get("a", demo(), "demo")
