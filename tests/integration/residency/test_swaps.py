"""Swaps of checkpoints on the real engine: each image is its own checkpoint's, whichever others are in flight."""

import copy
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from shared.errors import BadCheckpoint, OutOfMemory, RenderFailed, WeightsMissing
from shared.files.checkpoints import CheckpointFile
from shared.vocabulary.holdings import Tier
from shared.vocabulary.params import Upscaler
from tests.support import kin, phantom, studio
from tests.support.ceiling import Ceiling
from tests.support.studio import PASS
from worker.diffusion import canvas
from worker.diffusion.compiled import CompiledUNet
from worker.engine.engine import Engine, run_alone
from worker.engine.request import ImageSpec, Pixels, Request, Start
from worker.engine.runner import DiffusionRunner
from worker.engine.snapshot import Snapshot, pack, unpack
from worker.residency import modules
from worker.residency import residency as residencies
from worker.residency.modules import ResidentModules
from worker.residency.residency import Opened, Residency
from worker.residency.weights import PARTS, CheckpointWeights, Sums

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
NAMES = ("rgb", "gbr", "own")
FRAGMENT_BYTES, KEPT_BYTES = 2**20, 2**17
STRICT = 4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[CheckpointFile]:
    folder = tmp_path_factory.mktemp("kin")
    return [
        kin.recolored(folder, "rgb", (0, 1, 2)),
        kin.recolored(folder, "gbr", (1, 2, 0)),
        kin.retouched(folder, "own", 1.05),
    ]


@pytest.fixture(scope="module")
def three(files: list[CheckpointFile]) -> Residency:
    """The residency of all three, for tests that leave it well."""
    return kin.residency(*files)


@pytest.fixture(scope="module")
def expected(files: list[CheckpointFile]) -> list[Pixels]:
    """The mixed images, each as a worker renders it that has never had another checkpoint."""
    return alone(files, mixed(), strict_samples=STRICT)


def image(checkpoint: str, **how: Any) -> ImageSpec:
    return studio.spec(checkpoint=checkpoint, **{**SMALL, **how})


def alone(files: Sequence[CheckpointFile], specs: Sequence[ImageSpec], **how: Any) -> list[Pixels]:
    """Render each by a worker that has never had another checkpoint."""
    runners = {file.name: DiffusionRunner(kin.residency(file), **how) for file in files}
    return [run_alone(runners[spec.checkpoint], spec) for spec in specs]


def finish(engine: Engine[Any, Any], requests: Sequence[Request]) -> None:
    while not all(request.is_done for request in requests):
        engine.tick()


def picture(side: int = 64) -> Start:
    return Start(np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8))


def mixed() -> list[ImageSpec]:
    """Of three checkpoints, some from one picture that all of them share."""
    start, seeds = picture(), range(2)
    plain = [image(name, seed=seed) for name in NAMES for seed in seeds]
    return [*plain, *(image(name, start=start, last=1) for name in NAMES)]


def test_pictures_are_the_same_before_and_after_a_hundred_swaps(three: Residency) -> None:
    residency, runner = three, DiffusionRunner(three)
    before = [run_alone(runner, image(name)) for name in NAMES]
    opened = [residency.open(name) for name in NAMES]
    chance = random.Random(1)
    swaps = 0
    while swaps < 100:
        residency.turn_to(chance.choice(opened).weights)
        swaps = sum(count.number for count in residency.swaps.values())
    assert [run_alone(runner, image(name)).tobytes() for name in NAMES] == [one.tobytes() for one in before]
    assert (before[1] == before[0][..., [1, 2, 0]]).all()
    assert (before[2] != before[0]).any()
    assert residency.are_sound()


@pytest.mark.parametrize("price_s", [0.0, 1e6])
def test_images_of_several_checkpoints_at_once_are_what_they_are_alone(
    three: Residency, expected: list[Pixels], price_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in strict mode: whether checkpoints alternate by tick or one stays until it has no work."""
    monkeypatch.setattr(three, "price_s", lambda _: price_s)
    engine = Engine(DiffusionRunner(three, strict_samples=STRICT), limits=Ceiling(STRICT))
    before = three.swaps[Tier.RAM].number if three.swaps else 0
    requests = [engine.submit(spec) for spec in mixed()]
    finish(engine, requests)
    for request, pixels in zip(requests, expected, strict=True):
        assert np.array_equal(request.result(0), pixels), request.spec
    swaps = three.swaps[Tier.RAM].number - before
    assert swaps <= 3 if price_s else swaps > 4
    assert [request.sha256s for request in requests[::2][:3]] == [{name: three.sha256(name)} for name in NAMES]


def test_a_second_pass_may_have_a_checkpoint_of_its_own(three: Residency) -> None:
    """Its VAE shows the result; from pixels on, it encodes them as well."""
    runner = DiffusionRunner(three)
    second = replace(PASS, width=96, height=96, steps=2, last=1, upscaler=Upscaler.LATENT)
    same, other = (
        run_alone(runner, studio.spec(replace(second, checkpoint=name), checkpoint="rgb", **SMALL))
        for name in (None, "gbr")
    )
    assert (other == same[..., [1, 2, 0]]).all()


def refined(first: str, second: str, **how: Any) -> ImageSpec:
    """A picture of one checkpoint that another refines, from pixels on."""
    enlarged: dict[str, Any] = {"width": 96, "height": 96, "steps": 3, "last": 2, "upscaler": Upscaler.LANCZOS, **how}
    return studio.spec(replace(PASS, checkpoint=second, **enlarged), checkpoint=first, **SMALL)


def test_a_second_pass_refines_the_picture_of_the_first_ones_checkpoint(three: Residency) -> None:
    """As img2img by the one, from the enlarged picture of the other."""
    runner = DiffusionRunner(three)
    enlarged = canvas.resize(run_alone(runner, image("gbr")), 96, 96)
    by_hand = image("own", start=Start(enlarged), width=96, height=96, steps=3, last=2)
    assert np.array_equal(run_alone(runner, refined("gbr", "own")), run_alone(runner, by_hand))


def test_images_of_two_checkpoints_beside_others_are_what_they_are_alone(three: Residency) -> None:
    """Bit for bit, in strict mode."""
    pairs = [("rgb", "gbr"), ("gbr", "own"), ("own", "rgb")]
    specs = [*(refined(*pair) for pair in pairs), refined("own", "gbr", upscaler=Upscaler.LATENT), *mixed()[:6]]
    runner = DiffusionRunner(three, strict_samples=STRICT)
    engine = Engine(runner, limits=Ceiling(STRICT))
    requests = [engine.submit(spec) for spec in specs]
    finish(engine, requests)
    for request, (first, second) in zip(requests, pairs, strict=False):
        assert request.sha256s == {name: three.sha256(name) for name in (first, second)}
    for request in requests:
        assert np.array_equal(request.result(0), run_alone(runner, request.spec)), request.spec


def test_a_second_pass_may_have_an_inpainting_checkpoint(tmp_path: Path) -> None:
    """Of another shape, in modules of its own: it is shown a mask of everything, and no picture under it."""
    plain = kin.recolored(tmp_path, "rgb", (0, 1, 2))
    blind, seeing = kin.inpainting(tmp_path, "blind", 0.0), kin.inpainting(tmp_path, "seeing", 0.3)
    runner = DiffusionRunner(kin.residency(plain, blind, seeing))
    expected = run_alone(runner, refined("rgb", "rgb")).astype(int)
    assert np.abs(run_alone(runner, refined("rgb", "blind")) - expected).max() <= 1  # one rounding
    assert np.abs(run_alone(runner, refined("rgb", "seeing")) - expected).max() > 1


@pytest.mark.parametrize("wanted", [image("gbr", steps=3), refined("gbr", "own")], ids=["one pass", "second pass"])
def test_an_image_resumes_on_an_engine_that_first_has_to_load(
    files: list[CheckpointFile], three: Residency, wanted: ImageSpec
) -> None:
    runner = DiffusionRunner(three)
    begun = runner.draft(wanted)
    before = Engine(runner, limits=Ceiling(STRICT))
    interrupted = before.submit(wanted)
    while interrupted.steps_done < interrupted.steps_total - 1:
        before.tick()
    assert interrupted.snapshot is not None
    assert interrupted.snapshot.pass_index == len(wanted.passes) - 1
    data = pack({0: interrupted.snapshot}, b"")
    assert data is not None
    fresh = Engine(DiffusionRunner(kin.residency(*files)), limits=Ceiling(STRICT))
    asked: list[str] = []

    def recall(weights: str) -> Snapshot:
        asked.append(weights)
        return unpack(data, b"")[0]

    request = fresh.submit(wanted, recall=recall)
    finish(fresh, [request])
    assert asked == [begun.weights]
    assert request.steps_total == begun.steps_total
    assert np.array_equal(request.result(0), run_alone(runner, wanted))


def test_compiled_code_goes_on_with_other_weights() -> None:
    """Nothing is compiled anew, and nothing of the weights before is left in it."""
    graphs: list[Any] = []

    def backend(graph: Any, _examples: Any) -> Any:
        graphs.append(graph)
        return graph

    unet = copy.deepcopy(studio.small().unet)
    with torch.inference_mode():
        small = ResidentModules.of(replace(studio.small(), unet=unet), "small")
        first = small.begin(small.loaded, "first", None)
        compiled = CompiledUNet(small.loaded.unet, backend=backend)
        x, steps, context = torch.ones(2, 4, 8, 8), torch.full((2,), 500.0), torch.ones(2, 7, 48)
        assert compiled.predict(x, steps, context) is None
        assert compiled.settle()
        made = len(graphs)
        flats = {part: small.layouts[part].empty(studio.CPU) for part in PARTS}
        small.copy_out(flats)
        small.layouts["unet"].fill(flats["unet"], [one * 1.1 for one in small.layouts["unet"].views(flats["unet"])])
        sums = {part: Sums.of(flat) for part, flat in flats.items()}
        other = CheckpointWeights.of("other", "other", None, "small", {}, sums, flats)
        by_digest = {sums[part].digest: flats[part] for part in PARTS}
        outputs: list[Any] = []
        for weights in (first, other):
            if weights is other:
                assert small.take(other, by_digest.__getitem__) == (set(), True)
            output = compiled.predict(x, steps, context)
            plain = small.loaded.unet(x, steps, encoder_hidden_states=context, return_dict=False)[0]
            torch.testing.assert_close(output, plain)
            outputs.append(output)
        assert len(graphs) == made
        assert not torch.equal(outputs[0], outputs[1])


def test_parts_that_are_the_same_lie_in_memory_once(three: Residency) -> None:
    opened = [three.open(name) for name in NAMES]
    sizes = opened[0].weights.sizes
    # Two VAEs (gbr's is another), two UNets (own's is another), one text encoder.
    assert three._host.size_bytes == 2 * sizes["unet"] + 2 * sizes["vae"] + sizes["text_encoder"]


def tiers(residency: Residency) -> dict[str, Tier]:
    return {one.checkpoint: one.tier for one in residency.holdings()}


def test_memory_is_bounded_and_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    shades = [kin.distinct(tmp_path, f"c{index}", 1 + index / 100) for index in range(4)]
    size = kin.residency(shades[0]).open("c0").weights.size_bytes
    residency = kin.residency(*shades, ram_bytes=2 * size, room_s=0.0)
    assert residency.keeps == 2
    for name in ("c1", "c2", "c1", "c3"):
        residency.open(name)
        assert residency._host.size_bytes <= 2 * size
    assert tiers(residency) == {"c0": Tier.RESIDENT, "c1": Tier.RAM, "c2": Tier.DISK, "c3": Tier.RAM}
    in_flight: list[Opened] = [residency.open("c1"), residency.open("c3")]
    with pytest.raises(OutOfMemory, match=r"FARM_RAM_BYTES\) and is in use"):
        residency.open("c2")
    del in_flight[1]
    in_flight.append(residency.open("c2"))
    assert tiers(residency)["c3"] is Tier.DISK
    prices = {one.checkpoint: one.price_s for one in residency.holdings()}
    assert prices["c0"] == 0 < prices["c1"] < prices["c3"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_loading_leaves_behind_is_given_back(tmp_path: Path) -> None:
    """Small pieces that are kept hold the freed ones between them in the heap, as modules and their names do."""
    files = [kin.recolored(tmp_path, "rgb", (0, 1, 2)), kin.retouched(tmp_path, "own", 1.05)]
    residency, process = kin.residency(*files), psutil.Process()
    for load in (lambda: residency.open("own"), lambda: kin.residency(*files)):
        kept, held = fragments(200), process.memory_info().rss
        load()
        assert process.memory_info().rss < held - 100 * FRAGMENT_BYTES
        del kept


def fragments(number: int) -> list[torch.Tensor]:
    """Fill the heap, and free what lies between the pieces that are returned."""
    torch.ones(24 * 2**20, dtype=torch.uint8)  # freed: from now on pieces of its size come from the heap
    pairs = [torch.ones(size, dtype=torch.uint8) for _ in range(number) for size in (FRAGMENT_BYTES, KEPT_BYTES)]
    return pairs[1::2]


def test_a_checkpoint_larger_than_its_memory_fails_its_images_alone(files: list[CheckpointFile]) -> None:
    engine = Engine(DiffusionRunner(kin.residency(*files, ram_bytes=0)), limits=Ceiling(STRICT))
    requests = [engine.submit(image(name)) for name in ("gbr", "rgb")]
    finish(engine, requests)
    with pytest.raises(OutOfMemory, match=r"gbr needs .* GB of this worker's memory"):
        requests[0].result(0)
    assert requests[1].result(0).shape == (64, 64, 3)


def flip(flat: torch.Tensor) -> None:
    """Turn one bit in the middle."""
    flat[flat.numel() // 2] ^= 1 << 6


def flipped_file(path: Path) -> None:
    """Turn one bit of a file, and leave no trace in what the folder says of it."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1000] ^= 1 << 6
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("is_file_whole", [True, False])
def test_a_copy_in_ram_that_changed_is_read_again_before_a_picture_is_made_with_it(
    tmp_path: Path, is_file_whole: bool
) -> None:
    files = [kin.recolored(tmp_path, "rgb", (0, 1, 2)), kin.retouched(tmp_path, "own", 1.05)]
    (expected,) = alone(files[1:], [image("own")])
    residency = kin.residency(*files)
    weights = residency.open("own").weights
    flat = residency._host.flat(weights.parts["unet"].digest)
    assert flat is not None
    flip(flat)
    if not is_file_whole:
        flipped_file(files[1].path)
    engine = Engine(DiffusionRunner(residency), limits=Ceiling(STRICT))
    requests = [engine.submit(image(name)) for name in ("own", "rgb")]
    finish(engine, requests)
    assert requests[1].result(0).shape == (64, 64, 3)
    if is_file_whole:
        assert np.array_equal(requests[0].result(0), expected)
    else:
        with pytest.raises(BadCheckpoint, match="replaced while an image was made"):
            requests[0].result(0)
    assert residency.damaged == {Tier.RAM: 1}
    assert residency.are_sound()


def test_weights_that_changed_where_they_render_are_found_when_others_take_their_place(
    files: list[CheckpointFile],
) -> None:
    residency = kin.residency(*files)
    opened = [residency.open(name) for name in NAMES[:2]]
    flip(opened[0].modules._flats["unet"])
    residency.turn_to(opened[1].weights)
    assert not residency.are_sound()


def test_weights_that_never_arrive_whole_condemn_the_device(
    files: list[CheckpointFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    residency = kin.residency(*files)
    monkeypatch.setattr(modules, "_differing", lambda _weights, parts, _found: list(parts)[:1])
    engine = Engine(DiffusionRunner(residency), limits=Ceiling(STRICT))
    asked = engine.submit(image("own"))
    finish(engine, [asked])
    with pytest.raises(RenderFailed, match="do not arrive"):
        asked.result(0)
    assert not residency.are_sound()


def test_inpainting_and_v_prediction_are_served_beside_the_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other modules for the one, another schedule for the other; modules that nobody needs make way."""
    files = [
        kin.recolored(tmp_path, "plain", (0, 1, 2)),
        kin.written(tmp_path, "velocity", {"v_pred": torch.tensor([])}),
        kin.inpainting(tmp_path, "inpainting", 0.05),
    ]
    names = [file.name for file in files]
    expected = alone(files, [image(name) for name in names])
    residency = kin.residency(*files)
    engine = Engine(DiffusionRunner(residency), limits=Ceiling(2))
    requests = [engine.submit(image(name)) for name in names]
    assert len(residency._swaps.architectures()) == 2
    finish(engine, requests)
    for request, pixels in zip(requests, expected, strict=True):
        assert np.array_equal(request.result(0), pixels), request.spec.checkpoint
    assert (expected[0] != expected[1]).any()
    monkeypatch.setattr(residencies, "MAX_SETS", 1)
    again = kin.residency(*files, room_s=0.0)
    held = again.open("plain")
    with pytest.raises(OutOfMemory, match="Images of 1 other kinds"):
        again.open("inpainting")
    del held
    runner = DiffusionRunner(again)
    for name, pixels in zip(names[::-1], expected[::-1], strict=True):
        assert np.array_equal(run_alone(runner, image(name)), pixels), name
    assert len(again._swaps.architectures()) == 1


BAD: Mapping[str, Any] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5_000_000]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"junk" * 1000),
    "gone": lambda path: path.unlink(),
}


def test_a_file_that_turns_bad_fails_its_own_images_and_is_read_once_it_is_mended(tmp_path: Path) -> None:
    files = [kin.recolored(tmp_path, "rgb", (0, 1, 2)), kin.retouched(tmp_path, "own", 1.05)]
    whole = files[1].path.read_bytes()
    engine = Engine(DiffusionRunner(residency := kin.residency(*files)), limits=Ceiling(STRICT))
    for how, spoil in BAD.items():
        spoil(files[1].path)
        requests = [engine.submit(image(name, steps=1)) for name in ("own", "rgb")]
        finish(engine, requests)
        assert requests[1].result(0).shape == (64, 64, 3)
        with pytest.raises(WeightsMissing if how == "gone" else BadCheckpoint, match=r"own\.safetensors: "):
            requests[0].result(0)
        assert {one.checkpoint: one.refused is not None for one in residency.holdings()} == {"own": True, "rgb": False}
    files[1].path.write_bytes(whole)
    assert not any(one.refused for one in residency.holdings())
    again = engine.submit(image("own", steps=1))
    finish(engine, [again])
    assert again.result(0).shape == (64, 64, 3)
    with pytest.raises(WeightsMissing, match="no checkpoint named 'other'"):
        residency.open("other")


def test_a_file_that_is_replaced_under_its_name_is_another_checkpoint(tmp_path: Path) -> None:
    """What was begun with the old one ends with it."""
    files = [kin.recolored(tmp_path, "rgb", (0, 1, 2)), kin.recolored(tmp_path, "own", (1, 2, 0))]
    engine = Engine(DiffusionRunner(residency := kin.residency(*files)), limits=Ceiling(STRICT))
    before = engine.submit(image("own"))
    kin.recolored(tmp_path, "own", (2, 0, 1))
    after, base = engine.submit(image("own")), engine.submit(image("rgb"))
    finish(engine, [before, after, base])
    for request, order in ((before, [1, 2, 0]), (after, [2, 0, 1])):
        assert np.abs(request.result(0).astype(int) - base.result(0)[..., order]).max() <= 1
    assert before.sha256s != after.sha256s == {"own": residency.sha256("own")}


def test_spare_memory_of_a_gpu_is_the_nearest_tier(
    files: list[CheckpointFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the phantom. A copy there that changed is dropped, and the one in RAM is taken."""
    with phantom.present(monkeypatch):
        residency = kin.residency(*files, vram_bytes=2**30, device=phantom.PHANTOM)
        runner = DiffusionRunner(residency)
        expected = [run_alone(runner, image(name, steps=1)) for name in NAMES]
        opened = [residency.open(name) for name in NAMES]
        assert set(residency.swaps) == {Tier.RAM}
        assert np.array_equal(run_alone(runner, image("rgb", steps=1)), expected[0])
        assert residency.swaps[Tier.VRAM].number == 1
        assert tiers(residency) == {"gbr": Tier.VRAM, "own": Tier.VRAM, "rgb": Tier.RESIDENT}
        copied = residency._swaps.vram.flat(opened[1].weights.parts["vae"].digest)
        assert copied is not None
        with torch.inference_mode():
            flip(copied)
        assert np.array_equal(run_alone(runner, image("gbr", steps=1)), expected[1])
        assert (residency.damaged, residency.are_sound()) == ({Tier.VRAM: 1}, True)
        residency.shed()
        assert Tier.VRAM not in tiers(residency).values()
