"""The safety checker on weights of its own making: small, random, but the real classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

from shared.errors import BadWeights
from tests.studio import CPU
from worker.diffusion.safety import SafetyChecker

GRAY = np.full((64, 48, 3), 127, dtype=np.uint8)
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 8,
}


def folder(path: Path, *, threshold: float) -> Path:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **SIZES)
    config = CLIPConfig(text_config=CLIPTextConfig(**SIZES).to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    checker: Any = StableDiffusionSafetyChecker(config)
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        getattr(checker, name).fill_(threshold)
    checker.save_pretrained(path, safe_serialization=True)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.mark.parametrize(("threshold", "flagged"), [(-2.0, True), (2.0, False)])
def test_a_picture_is_flagged_by_its_likeness_to_a_concept(tmp_path: Path, threshold: float, flagged: bool) -> None:
    """Every likeness lies above -2 and below 2."""
    checker = SafetyChecker.load(folder(tmp_path, threshold=threshold), CPU, torch.float32)
    assert checker.flags(GRAY) is flagged


def test_a_folder_without_a_checker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="cannot be loaded as a safety checker"):
        SafetyChecker.load(tmp_path, CPU, torch.float32)
