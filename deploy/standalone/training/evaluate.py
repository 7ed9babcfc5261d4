"""Evaluation of a checkpoint: render prompts, judge the pictures, draw a contact sheet.

The prompts are the same in every run; every third asks for a pair that training never shows.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

from deploy.standalone.training.captions import prompt
from deploy.standalone.training.judge import Verdict, judge
from deploy.standalone.training.shapes import Scene, dice, random_scene
from deploy.standalone.training.vocabulary import TOKENIZER_DIR

SAMPLERS = ("dpmpp_2m", "euler_a")
FIRST_SEED = 1000
TILE_PX, LABEL_PX, COLUMNS = 128, 26, 10
GREEN, RED, BLACK = (0, 110, 0), (200, 0, 0), (0, 0, 0)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings of a render."""

    side_px: int = 256
    sampler: str = "dpmpp_2m"
    guidance_scale: float = 7.0
    steps: int = 20
    batch: int = 4


@dataclass(frozen=True, slots=True)
class Result:
    """One prompt, its picture and its verdict."""

    scene: Scene
    prompt: str
    image: Image.Image
    verdict: Verdict


def evaluate(
    checkpoint: Path, *, setting: Setting, count: int, device: torch.device, sheet: Path | None = None
) -> dict[str, float]:
    """Measure a single-file checkpoint that has its configs beside it; return its figures by name."""
    pipeline = load(checkpoint, setting.sampler, device)
    begun = time.monotonic()
    results = render(pipeline, setting, count)
    figures = measured(results) | {"seconds per image": (time.monotonic() - begun) / count}
    summary = ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
    log.info("%d px, %s, %d steps, n=%d: %s", setting.side_px, setting.sampler, setting.steps, count, summary)
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(results).save(sheet, optimize=True)
        log.info("contact sheet: %s", sheet)
    return figures


def load(checkpoint: Path, sampler: str, device: torch.device) -> Any:
    """Load a checkpoint in fp32 without a network."""
    pipeline = StableDiffusionPipeline.from_single_file(
        str(checkpoint),
        config=str(checkpoint.with_suffix(".config")),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER_DIR, local_files_only=True),
        local_files_only=True,
        torch_dtype=torch.float32,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = _sampler(sampler, pipeline.scheduler.config)
    return pipeline.to(device)


def render(pipeline: Any, setting: Setting, count: int) -> list[Result]:
    """Render and judge the first `count` prompts, each with a seed of its own."""
    requests = prompts(count)
    results: list[Result] = []
    for start in range(0, count, setting.batch):
        group = requests[start : start + setting.batch]
        images = pipeline(
            [text for _, text in group],
            height=setting.side_px,
            width=setting.side_px,
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance_scale,
            generator=[torch.Generator().manual_seed(FIRST_SEED + start + i) for i in range(len(group))],
        ).images
        results += [Result(scene, text, im, judge(im, scene)) for (scene, text), im in zip(group, images, strict=True)]
    return results


def prompts(count: int) -> list[tuple[Scene, str]]:
    """Return scenes and their prompts; every third is held out, two in three are plain: medium size, in the center."""
    rng = dice(123)
    pairs = []
    for i in range(count):
        scene = random_scene(rng, held_out=i % 3 == 2)
        if i % 3 != 1:
            scene = replace(scene, place="center", size="medium")
        pairs.append((scene, prompt(scene, rng)))
    return pairs


def measured(results: Sequence[Result]) -> dict[str, float]:
    """Return the share of right pictures per criterion."""
    held_out = [result for result in results if result.scene.is_held_out]
    figures = {name: _share(results, ask) for name, ask in _QUESTIONS.items()}
    if held_out:
        figures["all, held-out pairs"] = _share(held_out, _QUESTIONS["all"])
    return figures


def contact_sheet(results: Sequence[Result]) -> Image.Image:
    """Draw the pictures under their prompts: X where colours or shape are wrong, * for held-out pairs."""
    rows = -(-len(results) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE_PX, rows * (TILE_PX + LABEL_PX)), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, result in enumerate(results):
        x, y = i % COLUMNS * TILE_PX + 2, i // COLUMNS * (TILE_PX + LABEL_PX)
        sheet.paste(result.image.resize((TILE_PX - 4, TILE_PX - 4)), (x, y + LABEL_PX))
        pen.text((x, y), _label(result), fill=GREEN if result.verdict.all else RED)
        pen.text((x, y + 12), f"on {result.scene.background} {result.scene.place}", fill=BLACK)
    return sheet


def _sampler(name: str, config: Any) -> Any:
    if name == "euler_a":
        return EulerAncestralDiscreteScheduler.from_config(config)
    return DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True)


def _share(results: Sequence[Result], ask: Callable[[Verdict], float]) -> float:
    return fmean(ask(result.verdict) for result in results)


def _label(result: Result) -> str:
    scene = result.scene
    marks = ("" if result.verdict.all else "X ") + ("*" if scene.is_held_out else "")
    return f"{marks}{scene.size[0]} {scene.colour} {scene.shape}"


_QUESTIONS: dict[str, Callable[[Verdict], float]] = {
    "at place": lambda verdict: verdict.at_place,
    "shape colour": lambda verdict: verdict.colour,
    "background": lambda verdict: verdict.background,
    "colours": lambda verdict: verdict.colours,
    "shape class": lambda verdict: verdict.shape,
    "one piece": lambda verdict: verdict.one_piece,
    "position": lambda verdict: verdict.position,
    "overlap": lambda verdict: verdict.overlap,
    "all": lambda verdict: verdict.all,
}
