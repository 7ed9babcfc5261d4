"""Checkpoints on disk: finds Stable Diffusion 1.5 checkpoints in a folder and says why others cannot be loaded.

Reads safetensors headers only, never weights. A checkpoint is a single file in the original layout or a diffusers folder; both
may lie in subfolders. A folder `NAME.config/` beside a single file `NAME.safetensors` describes a model of other sizes.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shared.errors import BadCheckpoint
from shared.files.headers import Header, read_header

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
SD15_CONTEXT_WIDTH = 768

PARTS = ("unet", "vae", "text_encoder")
DEPTH = 4  # of subfolders; a link that leads back to its own folder ends there

_UNET_IN = "model.diffusion_model.input_blocks.0.0.weight"
_CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_VAE = "first_stage_model.decoder.conv_in.weight"
_TEXT = "cond_stage_model.transformer."
_VELOCITY = "v_pred"
_ZERO_SNR = "ztsnr"


# What changes when a checkpoint does: name, inode, time in ns and size of each of its files. The inode tells of a file that was
# put in the place of one of its size and time.
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A checkpoint that looks loadable, by its headers.

    `dtype` and `in_channels` are its UNet's. `config_dir` is the folder beside a single file that describes its sizes, if any;
    `variant` is set for a diffusers folder that has only half-precision files. `predicts_velocity` (v-prediction) and
    `ends_in_noise` (zero terminal SNR) hold for a single file with the marker tensors `v_pred` and `ztsnr`; for a folder its
    scheduler config says so. `stamp` is of just before.
    """

    name: str
    path: Path
    layout: Literal["single_file", "diffusers"]
    size_bytes: int
    dtype: str
    in_channels: int
    config_dir: Path | None = None
    variant: Literal["fp16"] | None = None
    predicts_velocity: bool = False
    ends_in_noise: bool = False
    stamp: Stamp = ()


def inspect(path: Path) -> CheckpointFile:
    """Read the headers of one checkpoint. Raises `BadCheckpoint` with one line: the file and what is wrong with it."""
    try:
        path = path.expanduser()
        before = stamp(path) if path.exists() else ()
        return replace(_inspect(path), stamp=before)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror}).") from error
    except RuntimeError as error:  # what expanduser raises for a user that does not exist
        raise BadCheckpoint(f"{path}: cannot be read ({error}).") from error


def digest(file: CheckpointFile) -> str:
    """Return the SHA-256 of a single file, or of the hashes of a folder's files, in hexadecimal. Reads all bytes."""
    if file.layout == "single_file":
        return _sha256(file.path).hex()
    parts = sorted(file.path.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(_sha256(path) for path in parts)).hexdigest()


def _sha256(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates in a folder and its subfolders, those nearest to its top first, with their stamps.

    `unreadable` says why folders and files could not be looked at.
    """

    stamps: dict[Path, Stamp]
    unreadable: dict[Path, str]


def walk(folder: Path) -> Candidates:
    """Look for candidates in a folder and its subfolders, without opening them."""
    found = Candidates({}, {})
    level = [folder]
    for _ in range(1 + DEPTH):
        level = [below for one in level for below in _looked_into(one, found)]
    return found


def inspect_anew(file: CheckpointFile) -> CheckpointFile:
    """Read the headers of a checkpoint as it is now, under the name that it goes by: in a cache its file has another.

    Raises `BadCheckpoint`.
    """
    return replace(inspect(file.path), name=file.name)


def stamp(path: Path, config_dir: Path | None = None) -> Stamp:
    """Return the stamp of one checkpoint; by default its config is looked for beside it. Raises `OSError`."""
    if path.is_dir():
        parts = sorted([*path.glob("model_index.json"), *path.glob("*/*.safetensors"), *path.glob("*/*.json")])
    else:
        parts = [path, *sorted((config_dir or path.with_suffix(".config")).rglob("*.json"))]
    stats = [(part.name, part.stat()) for part in parts]
    return tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def present_stamp(file: CheckpointFile) -> Stamp | None:
    """Return the stamp that a checkpoint has now; None while it cannot be looked at."""
    try:
        return stamp(file.path, file.config_dir)
    except OSError:
        return None


def scan(folder: Path) -> tuple[list[CheckpointFile], list[BadCheckpoint]]:
    """Inspect every candidate in a folder and its subfolders. Returns the good ones by name, and the errors of the others."""
    try:
        walked = walk(folder.expanduser())
    except RuntimeError as error:
        raise BadCheckpoint(f"{folder}: the checkpoint folder cannot be read ({error}).") from error
    if complaint := walked.unreadable.get(folder.expanduser()):
        raise BadCheckpoint(complaint)
    found: dict[str, CheckpointFile] = {}
    refused = [BadCheckpoint(complaint) for complaint in walked.unreadable.values()]
    for path in walked.stamps:
        try:
            file = inspect(path)
            if file.name in found:
                raise BadCheckpoint(taken(path, found[file.name]))
            found[file.name] = file
        except BadCheckpoint as error:
            refused.append(error)
    return [found[name] for name in sorted(found)], refused


def name_of(path: Path) -> str:
    """Return the name of the checkpoint that lies there."""
    return path.stem if path.suffix == ".safetensors" else path.name


def taken(path: Path, by: CheckpointFile) -> str:
    """Say that the name of a file is another's."""
    return f"{path}: the name {by.name} is taken by {by.path}; rename one."


def _looked_into(folder: Path, found: Candidates) -> list[Path]:
    """Add the candidates of one folder to what was found; return its subfolders."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        found.unreadable[folder] = f"{folder}: the folder cannot be read ({error.strerror})."
        return []
    below: list[Path] = []
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith(".") or path.suffix == ".config":
            continue
        try:
            if entry.is_dir() and not (path / "model_index.json").exists():
                below.append(path)
            elif entry.is_dir() or path.suffix == ".safetensors" or path.suffix.lower() in PICKLES:
                found.stamps[path] = stamp(path)
        except FileNotFoundError:  # gone since, or a link to nowhere
            continue
        except OSError as error:
            found.unreadable[path] = f"{path}: cannot be read ({error.strerror})."
    return below


def _inspect(path: Path) -> CheckpointFile:
    if not path.exists():
        raise BadCheckpoint(f"{path}: there is no such file or folder.")
    name = name_of(path)
    if path.suffix.lower() in PICKLES:
        raise BadCheckpoint(f"{path}: a pickle can run code when it is loaded; convert it to .safetensors first.")
    if not NAME.fullmatch(name):
        raise BadCheckpoint(f"{path}: rename it to letters, digits, '.', '_' and '-'; its name becomes part of URLs.")
    return _inspect_folder(path, name) if path.is_dir() else _inspect_file(path, name)


def recognised(path: Path, header: Header, size_bytes: int, *, context_width: int) -> CheckpointFile:
    """Return what the header of a single file tells of it. Raises `BadCheckpoint`, naming the path, if it is none of SD1.5."""
    complaint = _foreign_architecture(header) or _misfit(header, context_width)
    if complaint is not None:
        raise BadCheckpoint(f"{path}: {complaint}")
    unet_in = header[_UNET_IN]
    return CheckpointFile(
        name_of(path),
        path,
        "single_file",
        size_bytes,
        unet_in.dtype,
        unet_in.shape[1],
        predicts_velocity=_VELOCITY in header,
        ends_in_noise=_ZERO_SNR in header,
    )


def _inspect_file(path: Path, name: str) -> CheckpointFile:
    if path.suffix != ".safetensors":
        raise BadCheckpoint(f"{path}: not a .safetensors file.")
    header = read_header(path)
    sidecar = path.with_suffix(".config")
    config_dir = sidecar.resolve() if sidecar.is_dir() else None
    found = recognised(path, header, path.stat().st_size, context_width=_context_width(config_dir))
    return replace(found, name=name, path=path.resolve(), config_dir=config_dir)


def _context_width(config_dir: Path | None) -> int:
    if config_dir is None:
        return SD15_CONTEXT_WIDTH
    config = config_dir / "unet" / "config.json"
    return context_width_of(_json(config), str(config))


def context_width_of(unet: Mapping[str, Any], where: str) -> int:
    """Return how wide the prompts are that the UNet of a config reads. Raises `BadCheckpoint`."""
    width = unet.get("cross_attention_dim")
    if not isinstance(width, int):
        raise BadCheckpoint(f"{where}: it does not state cross_attention_dim.")
    return width


def _foreign_architecture(header: Header) -> str | None:
    """Name a file that people mistake for an SD1.5 checkpoint: SDXL, SD2, LoRA, VAE. None for others."""
    if any(name.startswith("conditioner.embedders.") for name in header):
        return "this is an SDXL checkpoint; the farm serves Stable Diffusion 1.5."
    if any(name.startswith("cond_stage_model.model.") for name in header):
        return "this is a Stable Diffusion 2 checkpoint; the farm serves Stable Diffusion 1.5."
    if any("lora_" in name or name.endswith((".alpha", ".hada_w1_a")) for name in header):
        return "this is a LoRA, not a checkpoint."
    if _UNET_IN not in header and any(name.startswith(("first_stage_model.", "decoder.")) for name in header):
        return "this is a VAE, not a whole checkpoint."
    return None


def _misfit(header: Header, context_width: int) -> str | None:
    """Return what an original-layout file lacks to be SD1.5; None if it is one."""
    if _UNET_IN not in header or _CONTEXT not in header:
        return "no Stable Diffusion 1.5 UNet in the original key layout is in it."
    if _VAE not in header or not any(name.startswith(_TEXT) for name in header):
        return "its VAE or text encoder is missing; the farm needs the whole checkpoint in one file."
    width = header[_CONTEXT].shape[-1] if header[_CONTEXT].shape else 0
    if width != context_width:
        return (
            f"its cross-attention is {width} wide, not the {context_width} of Stable Diffusion 1.5 or its own config."
        )
    return _channel_complaint(header[_UNET_IN].shape[1] if len(header[_UNET_IN].shape) == 4 else 0)


def _channel_complaint(in_channels: Any) -> str | None:
    if in_channels not in {4, 9}:
        return f"its UNet takes {in_channels} channels, Stable Diffusion 1.5's takes 4, or 9 for inpainting."
    return None


def _inspect_folder(path: Path, name: str) -> CheckpointFile:
    index = path / "model_index.json"
    if not index.exists():
        raise BadCheckpoint(f"{path}: not a diffusers folder (it has no model_index.json).")
    pipeline = _json(index).get("_class_name")
    if pipeline not in {"StableDiffusionPipeline", "StableDiffusionInpaintPipeline"}:
        raise BadCheckpoint(f"{path}: a {pipeline}; the farm serves StableDiffusionPipeline folders.")
    unet = _json(path / "unet" / "config.json")
    if complaint := _folder_complaint(unet, _json(path / "text_encoder" / "config.json")):
        raise BadCheckpoint(f"{path}: {complaint}")
    variant, weights = _folder_weights(path)
    headers = {file: read_header(file) for file in weights}
    unet_files = [header for file, header in headers.items() if file.parent.name == "unet"]
    unet_in = next((header["conv_in.weight"] for header in unet_files if "conv_in.weight" in header), None)
    if unet_in is None:
        raise BadCheckpoint(f"{path}: the weights in unet/ are not those of a diffusers UNet.")
    size = sum(file.stat().st_size for file in weights)
    return CheckpointFile(name, path.resolve(), "diffusers", size, unet_in.dtype, unet["in_channels"], variant=variant)


def _folder_complaint(unet: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> str | None:
    width = unet.get("cross_attention_dim")
    if unet.get("use_linear_projection") or width == 1024:
        return "this is a Stable Diffusion 2 checkpoint; the farm serves Stable Diffusion 1.5."
    if width != text_encoder.get("hidden_size"):
        return f"its UNet reads prompts {width} wide, its text encoder writes {text_encoder.get('hidden_size')}."
    return _channel_complaint(unet.get("in_channels"))


def _folder_weights(path: Path) -> tuple[Literal["fp16"] | None, list[Path]]:
    """Return the files to load: the plain ones, or the fp16 variant where a part has no plain ones."""
    parts = [sorted((path / part).glob("*.safetensors")) for part in PARTS]
    plain = [[file for file in files if "." not in file.stem] for files in parts]
    if all(plain):
        return None, [file for files in plain for file in files]
    half = [[file for file in files if ".fp16" in file.stem] for files in parts]
    if all(half):
        return "fp16", [file for files in half for file in files]
    part = next(part for part, files in zip(PARTS, plain, strict=True) if not files)
    raise BadCheckpoint(f"{path}: no .safetensors weights in {part}/; pickled .bin weights are not loaded.")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: missing or not valid JSON.") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path}: not a JSON object.")
    return content
