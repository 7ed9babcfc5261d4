"""The safety checker on weights of its own making: small, random, but the real classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from shared.errors import BadWeights
from tests.support.studio import CPU
from worker.diffusion.safety import SafetyChecker

GRAY = np.full((64, 48, 3), 127, dtype=np.uint8)
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
# In the words of the library's first versions, as the checker's own folder has it, but for the size.
AS_PUBLISHED: dict[str, Any] = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}
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
    (path / PREPROCESSOR).write_text(json.dumps(AS_PUBLISHED))
    return path


@pytest.mark.parametrize(("threshold", "flagged"), [(-2.0, True), (2.0, False)])
def test_a_picture_is_flagged_by_its_likeness_to_a_concept(tmp_path: Path, threshold: float, flagged: bool) -> None:
    """Every likeness lies above -2 and below 2."""
    checker = SafetyChecker.load(folder(tmp_path, threshold=threshold), CPU, torch.float32)
    assert checker.flags(GRAY) is flagged


def test_a_whole_diffusers_folder_will_do(tmp_path: Path) -> None:
    made = folder(tmp_path / "safety_checker", threshold=-2.0)
    (tmp_path / "feature_extractor").mkdir()
    (made / PREPROCESSOR).rename(tmp_path / "feature_extractor" / PREPROCESSOR)
    assert SafetyChecker.load(tmp_path, CPU, torch.float32).flags(GRAY)


def test_names_from_before_the_library_renamed_its_parts_are_read(tmp_path: Path) -> None:
    path = folder(tmp_path, threshold=0.0) / WEIGHTS
    weights = load_file(path)
    before = {name.replace("vision_model.", "vision_model.vision_model.", 1): weights[name] for name in weights}
    before["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(before, path, {"format": "pt"})
    loaded = SafetyChecker.load(tmp_path, CPU, torch.float32)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded._checker.state_dict().items())


def test_a_checker_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path, threshold=0.0) / WEIGHTS
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(BadWeights, match=r"the tensor visual_projection\.weight is missing"):
        SafetyChecker.load(tmp_path, CPU, torch.float32)


def test_a_folder_without_a_checker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="cannot be loaded as a safety checker"):
        SafetyChecker.load(tmp_path, CPU, torch.float32)
