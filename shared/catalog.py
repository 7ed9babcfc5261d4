"""Checkpoints on disk: what lies in a folder and whether it is a Stable Diffusion 1.5 that can be loaded.

Reads headers only, never weights, and nothing but safetensors. A checkpoint is a single file in the original layout or a
diffusers folder. A single file `NAME.safetensors` with a folder `NAME.config/` beside it has sizes of its own, described there.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.errors import BadCheckpoint

MAX_HEADER_BYTES = 32 * 1024 * 1024  # SD1.5's header is 0.15 MB
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
SD15_CONTEXT_WIDTH = 768

_UNET_IN = "model.diffusion_model.input_blocks.0.0.weight"
_CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_VAE = "first_stage_model.decoder.conv_in.weight"
_TEXT = "cond_stage_model.transformer."

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A checkpoint that looks loadable. `config_dir` is the folder beside a single file that describes its sizes, if any."""

    name: str
    path: Path
    layout: Literal["single_file", "diffusers"]
    size_bytes: int
    config_dir: Path | None = None


def inspect(path: Path) -> CheckpointFile:
    """Look at one checkpoint; raise `BadCheckpoint` with one line that names the file and what is wrong with it."""
    path = path.expanduser()
    try:
        return _inspect(path)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror}).") from error


def scan(folder: Path) -> tuple[list[CheckpointFile], list[BadCheckpoint]]:
    """Look at everything in a folder that could be a checkpoint. Returns the good ones by name, and the errors of the rest."""
    try:
        candidates = sorted(path for path in folder.expanduser().iterdir() if _is_candidate(path))
    except OSError as error:
        raise BadCheckpoint(f"{folder}: the checkpoint folder cannot be read ({error.strerror}).") from error
    found: dict[str, CheckpointFile] = {}
    refused: list[BadCheckpoint] = []
    for path in candidates:
        try:
            file = inspect(path)
            if file.name in found:
                raise BadCheckpoint(
                    f"{path}: the name {file.name} is taken by {found[file.name].path.name}; rename one."
                )
            found[file.name] = file
        except BadCheckpoint as error:
            refused.append(error)
    return list(found.values()), refused


def read_header(path: Path) -> Shapes:
    """Return the shape of every tensor in a safetensors file after checking that the file holds them all."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise BadCheckpoint(f"{path}: not a safetensors file (its header is unreadable).")
        if 8 + length > size:
            raise BadCheckpoint(f"{path}: truncated inside its header; download it again.")
        raw = file.read(length)
    tensors = _parsed_header(path, raw)
    end = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if end != size:
        raise BadCheckpoint(
            f"{path}: truncated or damaged ({size} bytes, its header promises {end}); download it again."
        )
    return {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}


def _parsed_header(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        for tensor in header.values():
            begin, end = tensor["data_offsets"]
            if not all(isinstance(n, int) and n >= 0 for n in (begin, end, *tensor["shape"])) or begin > end:
                raise ValueError("impossible offsets")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: not a safetensors file (its header is unreadable).") from error
    return header


def _is_candidate(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return (path / "model_index.json").exists() and path.suffix != ".config"
    return path.suffix in PICKLES | {".safetensors"}


def _inspect(path: Path) -> CheckpointFile:
    if not path.exists():
        raise BadCheckpoint(f"{path}: there is no such file or folder.")
    name = path.stem if path.suffix == ".safetensors" else path.name
    if path.suffix in PICKLES:
        raise BadCheckpoint(f"{path}: a pickle can run code when it is loaded; convert it to .safetensors first.")
    if not NAME.fullmatch(name):
        raise BadCheckpoint(f"{path}: rename it to letters, digits, '.', '_' and '-'; its name becomes part of URLs.")
    return _inspect_folder(path, name) if path.is_dir() else _inspect_file(path, name)


def _inspect_file(path: Path, name: str) -> CheckpointFile:
    if path.suffix != ".safetensors":
        raise BadCheckpoint(f"{path}: not a .safetensors file.")
    shapes = read_header(path)
    sidecar = path.with_suffix(".config")
    config_dir = sidecar if sidecar.is_dir() else None
    complaint = _foreign_architecture(shapes)
    if complaint is None:
        width = _json(config_dir / "unet" / "config.json")["cross_attention_dim"] if config_dir else SD15_CONTEXT_WIDTH
        complaint = _misfit(shapes, width)
    if complaint is not None:
        raise BadCheckpoint(f"{path}: {complaint}")
    return CheckpointFile(name, path.resolve(), "single_file", path.stat().st_size, config_dir and config_dir.resolve())


def _foreign_architecture(shapes: Shapes) -> str | None:
    """Say what a file is when it is something people mistake for an SD1.5 checkpoint."""
    if any(name.startswith("conditioner.embedders.") for name in shapes):
        return "this is an SDXL checkpoint; the farm serves Stable Diffusion 1.5."
    if any(name.startswith("cond_stage_model.model.") for name in shapes):
        return "this is a Stable Diffusion 2 checkpoint; the farm serves Stable Diffusion 1.5."
    if any("lora_" in name or name.endswith((".alpha", ".hada_w1_a")) for name in shapes):
        return "this is a LoRA, not a checkpoint."
    if _UNET_IN not in shapes and any(name.startswith(("first_stage_model.", "decoder.")) for name in shapes):
        return "this is a VAE, not a whole checkpoint."
    return None


def _misfit(shapes: Shapes, context_width: int) -> str | None:
    """Say what an original-layout file lacks to be SD1.5."""
    if _UNET_IN not in shapes or _CONTEXT not in shapes:
        return "no Stable Diffusion 1.5 UNet in the original key layout is in it."
    if _VAE not in shapes or not any(name.startswith(_TEXT) for name in shapes):
        return "its VAE or text encoder is missing; the farm needs the whole checkpoint in one file."
    if shapes[_CONTEXT][-1:] != (context_width,):
        return f"its cross-attention is {shapes[_CONTEXT][-1]} wide, Stable Diffusion 1.5's is {context_width}."
    return _channel_complaint(shapes[_UNET_IN][1] if len(shapes[_UNET_IN]) == 4 else 0)


def _channel_complaint(in_channels: int) -> str | None:
    if in_channels == 9:
        return "this is an inpainting checkpoint (9 input channels), which the farm does not serve yet."
    if in_channels != 4:
        return f"its UNet takes {in_channels} channels, Stable Diffusion 1.5's takes 4."
    return None


def _inspect_folder(path: Path, name: str) -> CheckpointFile:
    index = path / "model_index.json"
    if not index.exists():
        raise BadCheckpoint(f"{path}: not a diffusers folder (it has no model_index.json).")
    pipeline = _json(index).get("_class_name")
    if pipeline != "StableDiffusionPipeline":
        raise BadCheckpoint(f"{path}: a {pipeline}; the farm serves StableDiffusionPipeline folders.")
    weights = [_folder_weights(path, part) for part in ("unet", "vae", "text_encoder")]
    unet = _json(path / "unet" / "config.json")
    if unet.get("use_linear_projection") or unet.get("cross_attention_dim") == 1024:
        raise BadCheckpoint(f"{path}: this is Stable Diffusion 2; the farm serves Stable Diffusion 1.5.")
    if complaint := _channel_complaint(unet.get("in_channels", 0)):
        raise BadCheckpoint(f"{path}: {complaint}")
    size = sum(file.stat().st_size for file in weights)
    return CheckpointFile(name, path.resolve(), "diffusers", size)


def _folder_weights(path: Path, part: str) -> Path:
    weights = sorted((path / part).glob("*.safetensors"))
    if not weights:
        raise BadCheckpoint(f"{path}: no .safetensors weights in {part}/; pickled .bin weights are not loaded.")
    read_header(weights[0])
    return weights[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: missing or not valid JSON.") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path}: not a JSON object.")
    return content
