"""Safety checker of SD1.5 (CLIP). Off unless its weights are configured."""

from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from transformers import CLIPImageProcessorPil

from shared.errors import BadWeights
from worker.diffusion import out_of_memory


class SafetyChecker:
    """Flags pictures that must not be shown. Thread-safe; checks one picture at a time."""

    def __init__(self, checker: Any, processor: Any, device: torch.device, dtype: torch.dtype) -> None:
        self._checker = checker
        self._processor = processor
        self._device = device
        self._dtype = dtype
        self._lock = Lock()

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Self:
        """Load .safetensors weights from a folder of their own or from the diffusers folder around it. Raises `BadWeights`.

        The preprocessor's config is in the folder itself or, as in diffusers' layout, in `feature_extractor/` beside it.
        """
        home = folder / "safety_checker" if (folder / "safety_checker").is_dir() else folder
        try:
            checker = _checker(home, dtype)
            config = home if (home / "preprocessor_config.json").exists() else home.parent / "feature_extractor"
            processor = CLIPImageProcessorPil.from_pretrained(config, local_files_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise BadWeights(f"{folder}: cannot be loaded as a safety checker ({reason}).") from error
        return cls(checker.to(device).eval().requires_grad_(False), processor, device, dtype)

    @torch.inference_mode()
    def flags(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether a picture (height, width, 3) must not be shown. Raises `OutOfMemory`."""
        inputs = self._processor(pixels, return_tensors="pt").pixel_values
        with self._lock, out_of_memory.translated():
            inputs = inputs.to(self._device, self._dtype)
            # The checker blackens what it is given; a dummy is all that it needs to answer.
            _, flagged = self._checker(clip_input=inputs, images=np.zeros((1, 1, 1, 3), np.float32))
        return bool(flagged[0])


def _checker(folder: Path, dtype: torch.dtype) -> Any:
    """Load the network. The library fills missing tensors with random numbers: such a checker would answer at random."""
    model_and_report: Any = StableDiffusionSafetyChecker.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, disable_mmap=True, dtype=dtype, output_loading_info=True
    )
    checker, report = model_and_report
    if missing := sorted(report["missing_keys"]):
        raise BadWeights(f"the tensor {missing[0]} is missing")
    return checker
