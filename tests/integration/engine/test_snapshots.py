"""An image that was interrupted at any step and goes on from its snapshot, elsewhere, is the same bit for bit."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from shared.vocabulary.params import MaskFill, Upscaler
from shared.vocabulary.samplers import SCHEDULES, Sampler
from tests.support.ceiling import Ceiling
from tests.support.studio import PASS, demo, spec
from worker.engine.engine import Engine, run_alone
from worker.engine.latents import Latents
from worker.engine.request import ImageSpec, Pixels, Start
from worker.engine.runner import DiffusionRunner
from worker.engine.snapshot import MAX_BYTES, BadSnapshot, Snapshot, pack, unpack

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 4}
MARK = b"this job, this checkpoint, this code"


def picture() -> Start:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.float32)
    mask[:32] = 1
    return Start(pixels, mask, MaskFill.NOISE)


def enlarged(upscaler: Upscaler) -> Any:
    return replace(PASS, width=96, height=96, steps=6, last=3, sampler=Sampler.DPMPP_2M_SDE, upscaler=upscaler)


IMAGES = {
    "img2img": spec(**SMALL, last=3, start=replace(picture(), mask=None)),
    "inpainting": spec(**SMALL, last=3, start=picture(), sampler=Sampler.EULER_A),
    "latent hires": spec(enlarged(Upscaler.LATENT), **SMALL),
    "pixel hires": spec(enlarged(Upscaler.LANCZOS), **SMALL, start=picture(), last=3),
    "variation": spec(**SMALL, variation_seed=9, variation_strength=0.3, sampler=Sampler.DPMPP_SDE),
    "prompt that changes": spec(**{**SMALL, "prompt": "a [red:blue:0.5] star AND a [circle|heart]"}),
    "no guidance": spec(**SMALL, guidance_scale=1.0),
}


@pytest.fixture(scope="module")
def runner() -> DiffusionRunner:
    torch.set_num_threads(1)
    return DiffusionRunner.of(demo(), strict_samples=4)


def interrupted(runner: DiffusionRunner, wanted: ImageSpec) -> tuple[Pixels, list[bytes]]:
    """Render an image; return its pixels and its snapshot at every boundary between steps."""
    image = runner.prepare(runner.draft(wanted)).result()
    kept = [packed(image)]
    while not image.is_over:
        if image.is_pass_over:
            runner.prepare_next_pass(image).result()
        else:
            runner.denoise([image])
        kept.append(packed(image))
    return runner.decode(image).pixels(), kept


def packed(image: Latents) -> bytes:
    data = pack({0: image.snapshot()}, MARK)
    assert data is not None
    return data


def resumed(runner: DiffusionRunner, wanted: ImageSpec, snapshot: Snapshot) -> tuple[Pixels, int]:
    """Go on in an engine; return the pixels and the UNet calls that it took."""
    engine = Engine(runner, limits=Ceiling(4))
    request = engine.submit(wanted, snapshot)
    before = request.steps_done
    while not request.is_done:
        engine.tick()
    return request.result(timeout=0), request.steps_total - before


def check(runner: DiffusionRunner, wanted: ImageSpec) -> None:
    pixels, kept = interrupted(runner, wanted)
    assert np.array_equal(pixels, run_alone(runner, wanted))
    calls = runner.draft(wanted).steps_total
    for data in kept[1::2]:  # also between the two calls of a step, between two passes, and when all is done
        snapshot = unpack(data, MARK)[0]
        again, made = resumed(runner, wanted, snapshot)
        assert np.array_equal(again, pixels), snapshot.steps_done
        assert made == calls - snapshot.steps_done


@pytest.mark.parametrize("sampler", list(Sampler))
def test_every_sampler_goes_on_from_any_step(runner: DiffusionRunner, sampler: Sampler) -> None:
    check(runner, spec(**SMALL, sampler=sampler, schedule=SCHEDULES[sampler][0]))


@pytest.mark.parametrize("name", list(IMAGES))
def test_every_kind_of_image_goes_on_from_any_step(runner: DiffusionRunner, name: str) -> None:
    check(runner, IMAGES[name])


def test_a_snapshot_in_hand_does_not_change_while_its_image_goes_on(runner: DiffusionRunner) -> None:
    image = runner.prepare(runner.draft(spec(**SMALL, sampler=Sampler.UNIPC))).result()
    for _ in range(3):
        runner.denoise([image])
    taken = image.snapshot()
    before = {name: latents.copy() for name, latents in taken.arrays().items()}
    while not image.is_over:
        runner.denoise([image])
    after = taken.arrays()
    assert len(before) > 3
    assert all(np.array_equal(before[name], after[name]) for name in before)


def some(**changes: Any) -> dict[int, Snapshot]:
    how = {"pass_index": 0, "calls_done": 2, "steps_done": 2, "latents": {"x": np.ones((1, 4, 8, 8), np.float32)}}
    return {3: Snapshot(**{**how, **changes})}


def test_what_is_packed_comes_back() -> None:
    data = pack(some(), MARK)
    assert data is not None
    back = unpack(data, MARK)
    assert list(back) == [3]
    assert (back[3].pass_index, back[3].calls_done, back[3].steps_done) == (0, 2, 2)
    assert np.array_equal(back[3].latents["x"], np.ones((1, 4, 8, 8)))


def test_damage_of_any_byte_and_any_cut_is_noticed() -> None:
    data = pack(some(), MARK)
    assert data is not None
    for at in range(0, len(data), 7):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        for damaged in (flipped, data[:at]):
            with pytest.raises(BadSnapshot):
                unpack(damaged, MARK)


def test_a_foreign_snapshot_is_refused() -> None:
    data = pack(some(), b"another job")
    assert data is not None
    with pytest.raises(BadSnapshot, match="of another job"):
        unpack(data, MARK)


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_snapshot_is_refused(data: bytes) -> None:
    with pytest.raises(BadSnapshot):
        unpack(data, MARK)


def test_not_a_number_is_not_kept() -> None:
    assert pack(some(latents={"x": np.full((1, 4, 8, 8), math.nan, np.float32)}), MARK) is None


def test_a_snapshot_is_bounded() -> None:
    large = np.broadcast_to(np.float32(0), (MAX_BYTES // 4 + 1,))
    assert pack(some(latents={"x": large}), MARK) is None
