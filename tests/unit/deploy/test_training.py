"""The recipe of the demo checkpoint: its pictures, captions, words, file layout and judge, and that a step really learns."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from deploy.standalone.training import autoencoder, captions, evaluate, export, ldm, networks, shapes
from deploy.standalone.training.denoiser import DenoiserTrainer
from deploy.standalone.training.evaluate import Result, contact_sheet, measured, prompts
from deploy.standalone.training.judge import judge, nearest
from deploy.standalone.training.latents import LatentSet
from deploy.standalone.training.networks import Denoiser
from deploy.standalone.training.noising import Noiser, random_levels
from deploy.standalone.training.reading import ReadingTrainer
from deploy.standalone.training.shapes import COLOURS, PALETTE, SHAPES, Figure, Scene, dice, random_scene
from deploy.standalone.training.stages import STAGES, Phase, Share, parse_plan
from deploy.standalone.training.vocabulary import CLIP_TOKENS, POSITIONS, Vocabulary
from deploy.standalone.training.workspace import Workspace, read, read_facts, until_spent, write
from tests.support.walking import SAME

CHECKPOINTS = Path(__file__).parents[3] / "deploy" / "standalone" / "checkpoints"
PUBLISHED = CHECKPOINTS / "farm-demo.safetensors"
PUBLISHED_WORDS = ldm.text_encoder_name("embeddings.token_embedding.weight")
# Offsets from the centre, in radii, that the shape covers, and one that it does not.
INSIDE = {
    "circle": ((0, 0), (0.9, 0), (0, -0.9)),
    "square": ((0, 0), (0.8, 0.8), (-0.8, -0.8)),
    "triangle": ((0, 0), (0, -0.8), (0.8, 0.7)),
    "star": ((0, 0), (0, -0.9), (0.9, -0.3)),
    "ring": ((0.8, 0), (0, 0.8), (-0.8, 0)),
    "cross": ((0, 0), (0.9, 0), (0, 0.9), (-0.9, 0), (0, -0.9)),
    "heart": ((0, 0), (0.6, -0.5), (-0.6, -0.5), (0, 0.8)),
}
OUTSIDE = {
    "circle": (0.8, 0.8),
    "square": (0, 0.95),
    "triangle": (0.8, -0.5),
    "star": (0, 0.8),
    "ring": (0, 0),
    "cross": (0.7, 0.7),
    "heart": (0.8, 0.8),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small steps are as fast on one thread, and many times faster on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of_clip()


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, torch.device("cpu"))


def pixel(image: Image.Image, x: float, y: float) -> str:
    """The palette's name of the colour at a fraction of the picture."""
    return nearest(np.array(image.getpixel((int(x * image.width), int(y * image.height))), dtype=np.float64))


def still_picture(scene: Scene, side_px: int = 128) -> Image.Image:
    fill, background = PALETTE[scene.colour], PALETTE[scene.background]
    return shapes.draw(shapes.figure_of(scene), side_px, fill=fill, background=background)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_what_it_should(shape: str) -> None:
    figure = Figure(shape, 0.4, 0.55, 0.3)
    image = shapes.draw(figure, 256, fill=PALETTE["red"], background=PALETTE["blue"])
    for dx, dy in INSIDE[shape]:
        assert pixel(image, figure.x + dx * figure.radius, figure.y + dy * figure.radius) == "red", (dx, dy)
    dx, dy = OUTSIDE[shape]
    assert pixel(image, figure.x + dx * figure.radius, figure.y + dy * figure.radius) == "blue"


@pytest.mark.parametrize("seed", range(40))
def test_a_picture_shows_its_scene(seed: int) -> None:
    rng = dice(seed)
    scene = random_scene(rng)
    image = shapes.picture(scene, 128, rng)
    verdict = judge(image, scene)
    assert verdict.all
    assert verdict.position
    assert verdict.one_piece
    corners = [(0.02, 0.02), (0.98, 0.02), (0.02, 0.98), (0.98, 0.98)]
    assert {pixel(image, x, y) for x, y in corners} == {scene.background}


def test_a_close_up_shows_the_scenes_colours_only() -> None:
    rng, seen = dice(3), set()
    for _ in range(30):
        scene = Scene("square", "red", "white", "medium", "center")
        image = shapes.close_up(scene, 32, rng)
        seen |= {pixel(image, x / 8 + 0.05, y / 8 + 0.05) for x in range(8) for y in range(8)}
    assert {"red", "white"} <= seen
    assert "blue" not in seen


def test_training_never_shows_a_held_out_pair() -> None:
    rng = dice(0)
    scenes = [random_scene(rng) for _ in range(20_000)]
    assert not [scene for scene in scenes if scene.is_held_out]
    assert {scene.colour for scene in scenes} == {scene.background for scene in scenes} == set(COLOURS)
    held = [random_scene(rng, held_out=True) for _ in range(2000)]
    pairs = {(s.colour, s.shape) for s in held if (s.colour, s.shape) in shapes.HELD_OUT_SHAPES}
    assert pairs == shapes.HELD_OUT_SHAPES
    assert all(scene.is_held_out for scene in held)


def test_captions_name_only_what_is_in_the_scene() -> None:
    rng, colour_of = dice(1), {w: c for c, options in captions.COLOUR_WORDS.items() for w in options}
    for _ in range(5000):
        scene = random_scene(rng)
        said = captions.caption(scene, rng).replace(",", " ").split()
        named_colours = [colour_of[word] for word in said if word in colour_of]
        named_shapes = {captions.SHAPE_TOLD[word] for word in said if word in captions.SHAPE_TOLD}
        assert named_shapes <= {scene.shape}
        allowed = {scene.colour, scene.background} if scene.names_background else {scene.colour}
        assert set(named_colours) <= allowed
        if named_shapes:
            assert set(named_colours) == allowed
            told = {(colour, shape) for colour in named_colours[:1] for shape in named_shapes}
            assert scene.background == named_colours[0] or not told & shapes.HELD_OUT_SHAPES


def test_captions_use_known_words_and_are_sometimes_empty() -> None:
    rng, known = dice(2), captions.words() | {captions.UNKNOWN}
    texts = [captions.caption(random_scene(rng), rng) for _ in range(5000)]
    assert {word for text in texts for word in text.replace(",", " ").split()} <= known
    empty = sum(not captions.tells_a_scene(text) for text in texts) / len(texts)
    assert empty == pytest.approx(captions.EMPTY_SHARE + captions.NEGATIVE_SHARE, abs=0.03)


def test_what_a_caption_tells() -> None:
    scene = Scene("star", "cyan", "gray", "large", "left")
    text = "a huge cyan star on the left, grey background"
    assert captions.answers(scene, text) == (4, 10, 11, 2, 1)
    assert captions.answers(scene, "cyan star") == (4, 10, 11, 0, 0)
    assert captions.answers(scene, "blurry, bad anatomy") == captions.answers(scene, "") == (0, 0, 0, 0, 0)


def test_evaluation_asks_the_same_every_time_and_names_the_scene() -> None:
    wanted = prompts(30)
    assert wanted == prompts(30)
    assert [scene.is_held_out for scene, _ in wanted] == [i % 3 == 2 for i in range(30)]
    assert all(scene.colour in text and scene.background in text and scene.shape in text for scene, text in wanted)
    assert wanted[0][1] == "an orange circle on a green background"


def test_vocabulary_is_that_of_the_published_checkpoint(vocabulary: Vocabulary) -> None:
    with safe_open(PUBLISHED, framework="pt") as file:
        table = file.get_tensor(PUBLISHED_WORDS)
    unknown = table[table.shape[0] // 2]
    trained = [token for token in range(CLIP_TOKENS) if not torch.equal(table[token], unknown)]
    assert list(vocabulary.tokens) == trained


def test_encoding_a_caption(vocabulary: Vocabulary) -> None:
    rows = vocabulary.encode(["a red circle,", "a zebra", "", "red " * 200])
    assert rows.shape == (4, POSITIONS)
    assert rows[:, 0].eq(vocabulary.begin).all()
    assert rows[:, -1].eq(vocabulary.end).all()
    assert (rows[0] != vocabulary.end).sum() == 5  # begin, a, red, circle, comma
    assert vocabulary.unknown in rows[1]
    assert vocabulary.unknown not in rows[0]
    assert rows[2, 1:].eq(vocabulary.end).all()
    table = torch.arange(vocabulary.size).unsqueeze(1).float()
    full = vocabulary.spread(table)
    assert full.shape == (CLIP_TOKENS, 1)
    assert [int(full[token]) for token in vocabulary.tokens] == list(range(len(vocabulary.tokens)))
    assert (full == vocabulary.unknown).sum() == CLIP_TOKENS - len(vocabulary.tokens)


def test_export_has_the_published_layout(vocabulary: Vocabulary, tmp_path: Path) -> None:
    denoiser, vae = Denoiser(vocabulary, heads=1), networks.autoencoder()
    num_parts = sum(len(part.state_dict()) for part in (denoiser.unet, denoiser.text_encoder, vae))
    pipeline = export.assembled(denoiser, vocabulary, vae)
    state = export.single_file(pipeline)
    with safe_open(PUBLISHED, framework="pt") as file:
        published = {n: (s.get_dtype(), s.get_shape()) for n in file.keys() for s in [file.get_slice(n)]}  # noqa: SIM118
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {n: s for n, (_, s) in published.items()}
    kinds = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
    assert {name: kinds[tensor.dtype] for name, tensor in state.items()} == {n: d for n, (d, _) in published.items()}
    assert len(state) == num_parts + 3  # no two weights share a name; position_ids and the schedule are added

    export.write_configs(pipeline, tmp_path)
    for part in export.CONFIGS:
        assert config(tmp_path / part) == config(CHECKPOINTS / "farm-demo.config" / part), part


def test_the_published_file_survives_loading_and_exporting() -> None:
    pipeline = evaluate.load(PUBLISHED, "dpmpp_2m", torch.device("cpu"))
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.half()
    state = export.single_file(pipeline)
    with safe_open(PUBLISHED, framework="pt") as file:
        # Equal names and shapes would not show two weights of one shape in each other's place.
        swapped = [n for n in file.keys() if not torch.equal(state.pop(n), file.get_tensor(n))]  # noqa: SIM118
    assert not swapped
    assert not state


def config(path: Path) -> dict[str, Any]:
    """A config without what only says which library wrote it."""
    return {k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("_version")}


def test_each_name_has_one_place() -> None:
    assert ldm.unet_name("down_blocks.1.resnets.0.conv_shortcut.bias") == (
        "model.diffusion_model.input_blocks.4.0.skip_connection.bias"
    )
    assert (
        ldm.unet_name("up_blocks.0.upsamplers.0.conv.weight") == "model.diffusion_model.output_blocks.2.1.conv.weight"
    )
    assert (
        ldm.unet_name("up_blocks.1.upsamplers.0.conv.weight") == "model.diffusion_model.output_blocks.5.2.conv.weight"
    )
    assert ldm.vae_name("decoder.up_blocks.0.resnets.1.norm2.weight") == (
        "first_stage_model.decoder.up.3.block.1.norm2.weight"
    )
    assert ldm.vae_name("encoder.mid_block.attentions.0.to_out.0.weight") == (
        "first_stage_model.encoder.mid.attn_1.proj_out.weight"
    )


def test_judge_sees_what_is_wrong() -> None:
    scene = Scene("circle", "red", "blue", "medium", "center")
    right = judge(still_picture(scene), scene)
    assert right.all
    assert right.at_place
    assert right.overlap > 0.95
    assert not judge(still_picture(scene), Scene("circle", "green", "blue", "medium", "center")).colour
    assert not judge(still_picture(scene), Scene("circle", "red", "white", "medium", "center")).background
    assert not judge(still_picture(scene), Scene("star", "red", "blue", "medium", "center")).shape
    assert not judge(still_picture(scene), Scene("circle", "red", "blue", "medium", "left")).position
    blank = judge(Image.new("RGB", (64, 64), PALETTE["blue"]), scene)
    assert blank.background
    assert not blank.all
    two = still_picture(scene)
    two.paste(PALETTE["red"], (2, 2, 30, 30))
    assert not judge(two, scene).one_piece


def test_figures_count_the_pictures_that_are_right() -> None:
    held, shown = Scene("star", "red", "blue", "medium", "center"), Scene("ring", "red", "blue", "medium", "center")
    wrong = still_picture(Scene("ring", "red", "white", "medium", "center"))
    pairs = [(held, still_picture(held)), (shown, still_picture(shown)), (shown, wrong), (shown, wrong)]
    results = [Result(scene, "", image, judge(image, scene)) for scene, image in pairs]
    figures = measured(results)
    assert figures["all"] == figures["background"] == 0.5
    assert figures["shape class"] == figures["all, held-out pairs"] == 1.0
    assert contact_sheet(results).size == (1280, 154)


def test_plans() -> None:
    plan = parse_plan("4@128:24:1/1.5@256:8:.75,128:24:.25")
    assert plan == (Phase(4.0, (Share(128, 24, 1.0),)), Phase(1.5, (Share(256, 8, 0.75), Share(128, 24, 0.25))))
    assert [stage.minutes for stage in STAGES.values()] == [43.0, 34.0]
    with pytest.raises(ValueError, match="no pictures of 100 px"):
        parse_plan("4@100:24:1")


def test_a_budget_is_spent_once() -> None:
    clock = iter([0.0, 2.0, 5.0, 9.9, 10.0])
    assert list(until_spent(10, lambda: next(clock))) == [0.0, 0.2, 0.5, 0.99]
    slow = iter([0.0, 99.0])
    assert list(until_spent(10, lambda: next(slow))) == [0.0]


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "some.safetensors"
    write(path, {"a": torch.arange(4)}, {"tokens": [1, 2]})
    tensors, facts = read(path)
    assert tensors["a"].tolist() == [0, 1, 2, 3]
    assert facts == {"tokens": [1, 2]}
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_noise_is_added_by_the_schedule() -> None:
    torch.manual_seed(0)
    latents = torch.randn(64, 4, 16, 16)
    noised = Noiser().noised(latents, 128, dice(0))
    signal = noised.signal.view(-1, 1, 1, 1)
    assert torch.allclose(noised.latents, signal.sqrt() * latents + (1 - signal).sqrt() * noised.noise)
    assert noised.signal[noised.levels.argmax()] < noised.signal[noised.levels.argmin()]
    assert noised.weight[noised.levels.argmax()] > noised.weight[noised.levels.argmin()]
    levels = random_levels(20_000, 64).float()
    assert levels.min() >= 0
    assert levels.max() <= 999
    assert levels.mean() == pytest.approx(1000 * (0.7 * 2 / 3 + 0.3 / 2), rel=0.02)


def test_a_vae_learns_and_is_standardized() -> None:
    torch.manual_seed(0)
    trainer = autoencoder.AutoencoderTrainer(networks.autoencoder(), dice(1), torch.device("cpu"), batch=8)
    pixels = autoencoder.batch(dice(2), 16, 64)
    untrained = autoencoder.quality(trainer.vae, pixels)
    for _ in range(8):
        trainer.step(0.0)
    before = autoencoder.quality(trainer.vae, pixels)
    assert before > untrained + 0.5  # dB
    vae, pixels = trainer.vae.double(), pixels.double()
    before = autoencoder.quality(vae, pixels)
    autoencoder.standardize(vae, pixels)
    assert autoencoder.quality(vae, pixels) == pytest.approx(before, rel=SAME)  # only the latents' scale changed
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    assert latents.mean((0, 2, 3)).tolist() == pytest.approx([0.0] * 4, abs=SAME)
    assert latents.std((0, 2, 3)).tolist() == pytest.approx([1.0] * 4, rel=SAME)


def test_a_text_encoder_learns_to_read(vocabulary: Vocabulary, space: Workspace) -> None:
    torch.manual_seed(0)
    trainer, rng = ReadingTrainer(Denoiser(vocabulary, heads=1).text_encoder, vocabulary, space), dice(7)
    losses = [trainer.step(rng, 0.0)[0] for _ in range(6)]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", STAGES)
def test_a_denoiser_learns(name: str, vocabulary: Vocabulary, space: Workspace) -> None:
    torch.manual_seed(0)
    trainer = DenoiserTrainer(STAGES[name], vocabulary, space)
    rng = dice(1)
    pictures = LatentSet(64, torch.randn(16, 4, 8, 8).half(), tuple(random_scene(rng) for _ in range(16)))
    fixed = Noiser().noised(pictures.latents.float(), 64, dice(2))
    texts = [captions.prompt(scene, rng) for scene in pictures.scenes]
    before = loss(trainer, fixed, texts)
    for _ in range(6):
        trainer.step(pictures, 4, 0.0)
    assert loss(trainer, fixed, texts) < 0.95 * before


def test_a_stage_starts_from_the_weights_of_another(vocabulary: Vocabulary, space: Workspace) -> None:
    first = DenoiserTrainer(STAGES["first"], vocabulary, space)
    with torch.no_grad():
        first.average.unet.conv_in.weight.add_(1)
    first.save()
    second = DenoiserTrainer(STAGES["second"], vocabulary, space)
    second.restore(space.denoiser_file("first"))
    assert torch.equal(second.live.unet.conv_out.weight, first.live.unet.conv_out.weight)
    assert torch.equal(second.average.unet.conv_in.weight, first.average.unet.conv_in.weight)

    second.save()
    assert read_facts(space.denoiser_file("second"))["heads"] == 1
    exported = export.trained(space, "second")
    assert torch.equal(exported.unet.conv_in.weight, first.average.unet.conv_in.weight)  # the average is published


def loss(trainer: DenoiserTrainer, fixed: Any, texts: list[str]) -> float:
    with torch.no_grad():
        return float(trainer.loss(fixed, texts))
