"""Loader of SD1.5 checkpoints from disk to device, fully offline. `worker/diffusion/sd15/` has the configs of single files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from shared.errors import BadCheckpoint
from shared.files.checkpoints import CheckpointFile
from shared.vocabulary.prompt_reader import CLIP_DIR
from worker.diffusion import division

INPAINTING_CHANNELS = 9
SD15_DIR = Path(__file__).parent / "sd15"
# A mapped file that is cut while it is read would end the process, and one that is overwritten would change weights. While it is
# read, the file takes memory beside them: as much as was mapped.
UNMAPPED: dict[str, Any] = {"disable_mmap": True}


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint in memory, ready to render. The modules are diffusers' and transformers'."""

    name: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict[str, Any]
    device: torch.device
    dtype: torch.dtype

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet reads a mask and the masked picture beside the latents."""
        return bool(self.unet.config.in_channels == INPAINTING_CHANNELS)

    def on(self, device: torch.device, *, channels_last: bool = False) -> "LoadedCheckpoint":
        """Move the modules to a device, their UNet's weights channels-last if so wanted. Raises torch's `OutOfMemoryError`."""
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        modules = (self.unet.to(device), self.vae.to(device), self.text_encoder.to(device))
        unet, vae, text_encoder = modules
        return replace(self, unet=unet, vae=vae, text_encoder=text_encoder, device=device)


def load(file: CheckpointFile, device: torch.device, dtype: torch.dtype) -> LoadedCheckpoint:
    """Load a checkpoint onto a device. Raises `BadCheckpoint`, naming the file, for any fault of it and for lack of memory."""
    try:
        with _quiet():
            pipeline = _pipeline(file, dtype)
            _refuse_unset_weights(pipeline)
            modules = [_prepared(module, device) for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder)]
    except torch.OutOfMemoryError as error:
        raise BadCheckpoint(f"{file.path}: does not fit into the memory of {device}.") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise BadCheckpoint(f"{file.path}: cannot be loaded as Stable Diffusion 1.5 ({reason}).") from error
    unet, vae, text_encoder = modules
    scheduler_config = {**pipeline.scheduler.config, **_training(file)}
    return LoadedCheckpoint(file.name, unet, vae, text_encoder, pipeline.tokenizer, scheduler_config, device, dtype)


def _training(file: CheckpointFile) -> dict[str, Any]:
    """Return the scheduler config's entries for v-prediction and zero terminal SNR, as the file declares them."""
    entries = {"prediction_type": "v_prediction"} if file.predicts_velocity else {}
    return {**entries, "rescale_betas_zero_snr": True} if file.ends_in_noise else entries


def _pipeline(file: CheckpointFile, dtype: torch.dtype) -> Any:
    # Imported once the libraries are quiet: this prints notices about image libraries that nothing here uses.
    from diffusers import StableDiffusionPipeline

    parts = {
        "tokenizer": CLIPTokenizer.from_pretrained(CLIP_DIR, local_files_only=True),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        "local_files_only": True,
        "dtype": dtype,
        **UNMAPPED,
    }
    if file.layout == "diffusers":
        parts |= {"text_encoder": _folder_text_encoder(file, dtype), "variant": file.variant}
        return StableDiffusionPipeline.from_pretrained(file.path, use_safetensors=True, **parts)
    config = str(file.config_dir or SD15_DIR)
    if file.in_channels == INPAINTING_CHANNELS:
        parts["unet"] = _inpainting_unet(file, config, dtype)
    return StableDiffusionPipeline.from_single_file(str(file.path), config=config, **parts)


def _inpainting_unet(file: CheckpointFile, config: str, dtype: torch.dtype) -> Any:
    """Load a single file's UNet with nine input channels; the config for text-to-image says four and fits otherwise."""
    return UNet2DConditionModel.from_single_file(
        str(file.path),
        config=config,
        subfolder="unet",
        in_channels=INPAINTING_CHANNELS,
        local_files_only=True,
        dtype=dtype,
        **UNMAPPED,
    )


def _folder_text_encoder(file: CheckpointFile, dtype: torch.dtype) -> Any:
    """Load a folder's text encoder by itself, to learn of missing tensors: the library fills them with random numbers."""
    model_and_report: Any = CLIPTextModel.from_pretrained(
        file.path / "text_encoder",
        use_safetensors=True,
        local_files_only=True,
        variant=file.variant,
        dtype=dtype,
        output_loading_info=True,
        **UNMAPPED,
    )
    text_encoder, report = model_and_report
    if missing := sorted(report["missing_keys"]):
        raise BadCheckpoint(f"the tensor {missing[0]} of the text encoder is missing")
    return text_encoder


def _refuse_unset_weights(pipeline: Any) -> None:
    """Refuse a file that lacks a tensor: the library leaves it on the meta device."""
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        for name, weight in module.named_parameters():
            if weight.is_meta:
                raise BadCheckpoint(f"the tensor {name} is missing")


def _prepared(module: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        _align(module)
    division.leave_out(module)
    return module.to(device).eval().requires_grad_(False)


def _align(module: Any) -> None:
    """Copy weights to where torch would put them.

    How a tensor is aligned, which differs from file to file, decides by which kernel it is multiplied, and so the last bits of a
    picture.
    """
    for weight in (*module.parameters(), *module.buffers()):
        weight.data = weight.data.clone()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and notices out of the log; what matters of them becomes an error here."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
