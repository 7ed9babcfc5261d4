"""What a worker does on a GPU, on one that is none: everything lies where it must, and no tick waits for the device."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from shared.files import checkpoints
from shared.settings import Settings
from shared.vocabulary.params import MaskFill
from tests.support import adapters, phantom, studio
from tests.support.ceiling import Ceiling
from tests.support.company import IMAGES, SAMPLES, beside_a_long_one, every_kind, start
from tests.support.studio import widened
from worker import device
from worker.diffusion import checkpoint_loader
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.preview import Previewer
from worker.engine import profile
from worker.engine.draft import ExtraWeights
from worker.engine.engine import Engine, run_alone
from worker.engine.runner import DiffusionRunner
from worker.engine.snapshot import pack, unpack


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With one thread: two of them wait for each other at each of the small calls that a busy machine interrupts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with phantom.present(monkeypatch):
        yield
    torch.set_num_threads(threads)


def loaded(dtype: torch.dtype = torch.float32) -> LoadedCheckpoint:
    return checkpoint_loader.load(checkpoints.inspect(studio.DEMO), phantom.PHANTOM, dtype)


@pytest.mark.usefixtures("gpu")
def test_the_pictures_are_the_cpus(tmp_path: Path) -> None:
    ours, theirs = (
        DiffusionRunner.of(one, ExtraWeights.at(adapters.shelves(tmp_path / one.device.type), memory_bytes=2**30))
        for one in (loaded(), studio.demo())
    )
    for spec in every_kind()[:8]:
        assert (run_alone(ours, spec) == run_alone(theirs, spec)).all(), spec


@pytest.mark.usefixtures("gpu")
def test_no_tick_waits_while_there_is_something_to_denoise(tmp_path: Path) -> None:
    """Whatever comes, is encoded, shown, enlarged and developed beside it."""
    checkpoint = loaded()
    library = ExtraWeights.at(adapters.shelves(tmp_path), memory_bytes=2**30)
    shown = beside_a_long_one(
        DiffusionRunner.of(checkpoint, library), every_kind(), quiet=phantom.no_waiting, meanwhile=phantom.finish
    )
    assert shown > IMAGES


@pytest.mark.usefixtures("gpu")
def test_no_tick_waits_for_what_an_inpainting_checkpoint_reads(tmp_path: Path) -> None:
    """Nor for a decoder's previews."""
    checkpoint = widened(tmp_path, 0.05, phantom.PHANTOM)
    tiny: Any = AutoencoderTiny()
    tiny.to(phantom.PHANTOM).requires_grad_(False)
    runner = DiffusionRunner.of(checkpoint, previewer=Previewer(checkpoint.vae, tiny))
    chance = random.Random(2)
    small: dict[str, Any] = {"width": 64, "height": 64, "steps": 3}
    painted = replace(start(chance, 64, 64), mask=np.eye(64, dtype=np.float32), fill=MaskFill.NOISE)
    specs = [studio.spec(**small), studio.spec(start=painted, last=2, **small)]
    assert beside_a_long_one(runner, specs, quiet=phantom.no_waiting, meanwhile=phantom.finish)


WAITS: dict[str, Callable[[Any], Any]] = {
    "a number": lambda x: x.sum().item(),
    "a flag": lambda x: bool((x > 0).all()),
    "text": lambda x: f"{x.sum():.3f}",
    "a print": str,
    "a copy": lambda x: x.cpu(),
    "a copy that nobody waits for into any memory": lambda x: torch.empty(4).copy_(x, non_blocking=True),
    "a copy to the device": lambda x: x + torch.ones(4).to(x.device),
    "made on the host": lambda x: torch.tensor([1.0], device=x.device),
    "indices of flags": lambda x: x[x > 0],
    "indices from the host": lambda x: x[[0, 1]],
    "a slice up to a number": lambda x: x[: (x > 0).sum()],
    "a choice of unknown size": lambda x: torch.where(x > 0),
    "repeats of unknown number": lambda x: x.repeat_interleave((x > 0).long()),
    "a weight from the device": lambda x: x.add(x, alpha=x.sum()),
    "a filling from the device": lambda x: torch.full((2,), x.sum(), device=x.device),
    "an equation": lambda x: torch.linalg.inv(torch.eye(2, device=x.device)),
    "all of it": lambda _: torch.cuda.synchronize(),
}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("act", WAITS.values(), ids=WAITS)
def test_the_phantom_sees_who_waits(act: Callable[[Any], Any]) -> None:
    x = torch.zeros(4, device=phantom.PHANTOM)
    act(x)
    with phantom.no_waiting(), pytest.raises(phantom.Waited):
        act(x)


@pytest.mark.usefixtures("gpu")
def test_the_phantom_takes_nothing_from_the_other_side() -> None:
    x = torch.zeros(4, device=phantom.PHANTOM)
    host = torch.zeros(4)
    acts: list[Callable[[], Any]] = [lambda: x + host, x.numpy, lambda: np.asarray(x), x.pin_memory]
    for act in acts:
        with pytest.raises(phantom.Stranded):
            act()
    with phantom.no_waiting():
        assert (x.add_(1) * 2)[1:].shape == (3,)


@pytest.mark.usefixtures("gpu")
def test_an_image_goes_on_from_what_was_fetched_of_it() -> None:
    """In the middle of its steps, and on its way from one pass to the next."""
    wanted = every_kind()[0]
    runner = DiffusionRunner.of(loaded())
    whole = run_alone(runner, wanted)
    engine = Engine(runner, limits=Ceiling(SAMPLES))
    request = engine.submit(wanted)
    kept: dict[int, bytes | None] = {}
    while not request.is_done:
        engine.tick()
        if request.snapshot is not None:
            kept[request.steps_done] = pack({0: request.snapshot}, b"")
    assert len(kept) == request.steps_total  # the last step of the first pass among them
    for data in kept.values():
        assert data is not None
        resumed = engine.submit(wanted, unpack(data, b"")[0])
        while not resumed.is_done:
            engine.tick()
        assert (resumed.result(0) == whole).all()


@pytest.mark.usefixtures("gpu")
def test_numbers_that_overflow_are_made_anew_on_the_device() -> None:
    """Encoded and decoded once more in full precision, by a VAE whose half precision blows up at either end."""
    checkpoint = loaded(torch.float16)
    for half in (checkpoint.vae.encoder, checkpoint.vae.decoder):
        half.conv_in.weight.mul_(2e4)
    chance = random.Random(1)
    wanted = studio.spec(width=64, height=64, steps=2, last=1, start=start(chance, 64, 64))
    assert run_alone(DiffusionRunner.of(checkpoint), wanted).std() > 1


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("batching", ["continuous", "strict"])
def test_a_worker_gets_ready_on_a_gpu_and_renders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batching: Literal["continuous", "strict"]
) -> None:
    """Half precision, as is the rule there; its order in memory is measured, but not where bits are promised."""
    monkeypatch.setattr(profile, "CUDA_SHAPES", ((8, 8),))
    monkeypatch.setattr(device, "is_faster_channels_last", lambda _: True)
    bundle = device.load(Settings(cache_dir=tmp_path, batching=batching), checkpoints.inspect(studio.DEMO))
    assert (bundle.device_name, bundle.gpu_uuid) == ("Phantom", "GPU-phantom")
    assert bundle.memory() == {"free": 80 * 2**30, "total": 80 * 2**30}
    assert bundle.proof is not None
    assert bundle.proof.weights.are_sound()
    request = bundle.engine.submit(studio.spec(width=64, height=64, steps=4))
    while not request.is_done:
        bundle.engine.tick()
    halved = checkpoint_loader.load(checkpoints.inspect(studio.DEMO), studio.CPU, torch.float16)
    wanted, rounded = (
        run_alone(DiffusionRunner.of(checkpoint), studio.spec(width=64, height=64, steps=4)).astype(int)
        for checkpoint in (studio.demo(), halved)
    )
    # In another order in memory it rounds otherwise than the processor does, but no worse.
    assert np.abs(request.result(0) - wanted).mean() < 2 * np.abs(rounded - wanted).mean()
    if batching == "continuous":
        assert "channels-last" in (tmp_path / "limits.json").read_text()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, True),
        ({"compile": True}, True),
        ({"batching": "strict"}, False),
        ({"channels_last": False}, False),
        ({"channels_last": True, "batching": "strict"}, True),
    ],
)
def test_the_order_of_weights_is_the_one_told_or_measured(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], expected: bool
) -> None:
    monkeypatch.setattr(device, "is_faster_channels_last", lambda _: True)
    assert device.is_channels_last(Settings(**told), loaded()) is expected
    assert device.is_channels_last(Settings(**told), studio.demo()) is bool(told.get("channels_last"))


@pytest.mark.parametrize(("total", "expected"), [(6, 0.75), (16, 2.0), (80, 2.0)])
def test_loras_leave_a_small_gpu_room_to_render(monkeypatch: pytest.MonkeyPatch, total: int, expected: float) -> None:
    with phantom.present(monkeypatch, memory_bytes=total * 2**30):
        assert device.lora_memory(Settings(), phantom.PHANTOM) == expected * 2**30
        assert device.lora_memory(Settings(lora_memory_bytes=5), phantom.PHANTOM) == 5
    assert device.lora_memory(Settings(), studio.CPU) == 2 * 2**30
