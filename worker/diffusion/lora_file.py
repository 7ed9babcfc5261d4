"""Reader of LoRA files in kohya's, LyCORIS' and diffusers' key formats, from disk to device. `lora` applies them.

LoRA: arXiv:2106.09685. LoHa: arXiv:2108.06098. Keys and layers are compared in one flat spelling of paths, without parsing:
`lora_unet_down_blocks_0_attentions_0_proj_in` and `unet.down_blocks.0.attentions.0.proj_in` both name the same layer.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import safetensors.torch
import structlog
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from shared.errors import BadWeights, OutOfMemory
from shared.files import weights
from shared.files.weights import WeightsFile
from worker.diffusion import out_of_memory
from worker.diffusion.checkpoint_loader import LoadedCheckpoint

SIDES = ("unet", "text_encoder")
# What the ways of writing call the parts of a delta.
_PARTS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora.down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora.up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
}
_UNSUPPORTED = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_magnitude_vector.weight": "DoRA",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "hada_t1": "Tucker LoHa",
    "diff": "full-difference",
}
_PREFIXES = {
    "lora_unet_": "unet_",
    "lora_te_": "text_encoder_",
    "lora_te1_": "text_encoder_",
    "base_model.model.": "unet_",
}
_TEXT_ENCODER_WORDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

_serials = count()
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A low-rank delta as two thin layers: `down` (rank, in, …) of the layer's kind, `up` (out, rank) or a 1×1 convolution."""

    down: Tensor
    up: Tensor
    scale: float

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that it keeps in memory."""
        return self.down, self.up

    def add(self, layer: Any, x: Tensor, output: Tensor) -> None:
        """Add the delta for a layer's input (n, …) to its output (n, …), in place."""
        if self.down.ndim == 2:
            thin = functional.linear(x, self.down).view(-1, self.down.shape[0])
            output.view(-1, output.shape[-1]).addmm_(thin, self.up.t(), alpha=self.scale)
        else:
            output.add_(functional.conv2d(_convolved(layer, x, self.down), self.up), alpha=self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A delta of the layer's full size: a LoHa, which is the elementwise product of two low ranks."""

    weight: Tensor
    scale: float

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that it keeps in memory."""
        return (self.weight,)

    def add(self, layer: Any, x: Tensor, output: Tensor) -> None:
        """Add the delta for a layer's input (n, …) to its output (n, …), in place."""
        is_linear = self.weight.ndim == 2
        delta = functional.linear(x, self.weight) if is_linear else _convolved(layer, x, self.weight)
        output.add_(delta, alpha=self.scale)


Delta = LowRank | Dense


@dataclass(frozen=True, slots=True, eq=False)
class LoadedLora:
    """A LoRA on the device: deltas by layer path. Two loads of one file are two LoRAs, told apart by their serial."""

    name: str
    unet: Mapping[str, Delta]
    text_encoder: Mapping[str, Delta]
    serial: int = field(default_factory=_serials.__next__)

    def side(self, side: str) -> Mapping[str, Delta]:
        """Return the deltas of one of `SIDES`."""
        return self.unet if side == "unet" else self.text_encoder

    @property
    def size_bytes(self) -> int:
        """Memory of its tensors."""
        deltas = (*self.unet.values(), *self.text_encoder.values())
        return sum(tensor.nbytes for delta in deltas for tensor in delta.tensors())


def load(file: WeightsFile, checkpoint: LoadedCheckpoint) -> LoadedLora:
    """Read a LoRA onto a checkpoint's device. Thread-safe. Raises `BadWeights`, naming the file, and `OutOfMemory`."""
    try:
        weights.inspect(file.kind, file.path, context_width=checkpoint.unet.config.cross_attention_dim)
        # Read, not mapped: touching a mapped file that someone has since truncated ends the process.
        raw = file.path.read_bytes()
        metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__") or {}
        return _parsed(file.name, safetensors.torch.load(raw), _Scales(metadata), checkpoint)
    except _Misfit as error:
        raise BadWeights(f"{file.path}: {error}") from error
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:  # replaced or cut just now
        if out_of_memory.is_shortage(error):
            raise OutOfMemory(f"The LoRA {file.name} does not fit into the memory of {checkpoint.device}.") from error
        reason = " ".join(str(error).split())[:200]
        raise BadWeights(f"{file.path}: cannot be read ({reason}).") from error


class _Misfit(Exception):
    """A LoRA does not fit the checkpoint; the message says why."""


class _Scales:
    """Scale of deltas without an alpha: from peft's config in the file's metadata, else 1."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        try:
            config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        except ValueError:
            config = {}
        self._config: dict[str, Any] = config if isinstance(config, dict) else {}

    def of(self, side: str, path: str, rank: int) -> float:
        alpha = self._config.get(f"{side}.lora_alpha", rank)
        pattern = self._config.get(f"{side}.alpha_pattern")
        for name, value in pattern.items() if isinstance(pattern, dict) else ():
            if f".{path}".endswith("." + name.removeprefix("^")):
                alpha = value
        return float(alpha) / (math.sqrt(rank) if self._config.get(f"{side}.use_rslora") else rank)


def _parsed(name: str, tensors: Mapping[str, Tensor], scales: _Scales, checkpoint: LoadedCheckpoint) -> LoadedLora:
    marks = {kind for key in tensors for mark, kind in _UNSUPPORTED.items() if key.endswith("." + mark)}
    if marks:
        raise _Misfit(f"{' and '.join(sorted(marks))} weights are not supported; LoRA, LoCon and LoHa are.")
    sides: dict[str, dict[str, Delta]] = {side: {} for side in SIDES}
    for (side, path), parts in _by_layer(name, tensors, checkpoint).items():
        layer = getattr(checkpoint, side).get_submodule(path)
        try:
            delta = _delta(layer, parts, lambda rank, side=side, path=path: scales.of(side, path, rank))
            sides[side][path] = _placed(delta, checkpoint)
        except _Misfit as misfit:
            raise _Misfit(f"{side}.{path} {misfit}") from misfit
    return LoadedLora(name, sides["unet"], sides["text_encoder"])


def _by_layer(
    name: str, tensors: Mapping[str, Tensor], checkpoint: LoadedCheckpoint
) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Group a file's tensors by layer: {(side, path): {part: tensor}}. Logs keys that name no layer."""
    layers = {flat: place for side in SIDES for flat, place in _layers(getattr(checkpoint, side), side)}
    by_layer: dict[tuple[str, str], dict[str, Tensor]] = {}
    strangers = []
    for key, tensor in tensors.items():
        stem, part = _split(key)
        if part and (place := layers.get(_flat_path(stem))):
            by_layer.setdefault(place, {})[part] = tensor
        else:
            strangers.append(key)
    if not by_layer:
        raise _Misfit("none of its layers is one of this checkpoint's; it was made for another architecture.")
    if strangers:
        log.warning("lora.keys_ignored", name=name, ignored=len(strangers), of=len(tensors), first=strangers[0])
    return by_layer


def _layers(module: Any, side: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for path, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            yield _flat(f"{side}_{path}"), (side, path)


def _flat(path: str) -> str:
    """Spell a path as kohya does, without the text encoder's level `text_model`, which newer transformers have dropped."""
    return path.replace(".", "_").replace("text_model_", "")


def _split(key: str) -> tuple[str, str]:
    """Split a key into the path of its layer and the part of the delta; "" if it names no part."""
    for ending, part in _PARTS.items():
        if key.endswith("." + ending):
            return key[: -len(ending) - 1], part
    for half in ("down", "up"):  # the first way diffusers wrote them: ….attn1.processor.to_q_lora.down.weight
        if key.endswith(f"_lora.{half}.weight"):
            return key[: -len(f"_lora.{half}.weight")].replace(".processor.", "."), half
    return key, ""


def _flat_path(stem: str) -> str:
    """Translate a key's stem to the spelling of `_layers`."""
    for theirs, ours in _PREFIXES.items():
        if stem.startswith(theirs):
            stem = ours + stem.removeprefix(theirs)
    flat = _flat(stem)
    if not flat.startswith(tuple(f"{side}_" for side in SIDES)):
        flat = f"unet_{flat}"  # attention processors saved by themselves
    if flat.startswith("text_encoder_"):
        for theirs, ours in _TEXT_ENCODER_WORDS.items():
            flat = flat.removesuffix(theirs) + ours if flat.endswith(f"self_attn_{theirs}") else flat
    return f"{flat}_0" if flat.endswith("_to_out") else flat


def _delta(layer: Any, parts: Mapping[str, Tensor], scale_of: Any) -> Delta:
    """Build a layer's delta in float32; raise `_Misfit` for missing parts and shapes that are not the layer's."""
    tensors = {part: tensor.float() for part, tensor in parts.items()}
    alpha = tensors.pop("alpha", None)
    if set(tensors) not in (
        {"down", "up"},
        {"down", "mid", "up"},
        {f"hada_w{n}_{half}" for n in "12" for half in "ab"},
    ):
        raise _Misfit(f"has only some of its parts: {', '.join(sorted(tensors)) or 'alpha'}.")
    if alpha is not None and alpha.numel() != 1:
        raise _Misfit(f"has an alpha of {alpha.numel()} numbers.")
    rank = tensors["hada_w1_b" if "hada_w1_b" in tensors else "down"].shape[:1]
    if not rank or not rank[0]:
        raise _Misfit("has no rank.")
    scale = scale_of(rank[0]) if alpha is None else float(alpha) / rank[0]
    shape = tuple(layer.weight.shape)
    return _hadamard(shape, tensors, scale) if "hada_w1_a" in tensors else _low_rank(shape, tensors, scale)


def _low_rank(shape: tuple[int, ...], tensors: Mapping[str, Tensor], scale: float) -> LowRank:
    down, up, mid = tensors["down"], tensors["up"], tensors.get("mid")
    rank = down.shape[0]
    if mid is not None and mid.ndim == 4 and mid.shape[1] == rank:
        # A 1×1 convolution before another is one convolution.
        down, rank = torch.einsum("nrhw,ri->nihw", mid, down.flatten(1)), mid.shape[0]
    down = _as(down, (rank, *shape[1:]))
    up = _as(up, (shape[0], rank, *(1 for _ in shape[2:])))
    return LowRank(down, up, scale)


def _hadamard(shape: tuple[int, ...], tensors: Mapping[str, Tensor], scale: float) -> Dense:
    rank, width = tensors["hada_w1_b"].shape[0], math.prod(shape[1:])
    first, second = (
        _as(tensors[f"hada_w{n}_a"], (shape[0], rank)) @ _as(tensors[f"hada_w{n}_b"], (rank, width)) for n in "12"
    )
    return Dense((first * second).reshape(shape), scale)


def _as(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Reshape a tensor to a shape that may differ in sizes of one at the end: linear layers count as 1×1 convolutions."""
    if _without_ones(tuple(tensor.shape)) != _without_ones(shape):
        raise _Misfit(f"does not fit: {tuple(tensor.shape)} where {shape} was expected; it was made for another.")
    return tensor.reshape(shape)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape


def _placed(delta: Delta, checkpoint: LoadedCheckpoint) -> Delta:
    """Move a delta to the checkpoint's device and precision; raise `_Misfit` for numbers that are not finite there."""
    cast = [tensor.to(checkpoint.dtype) for tensor in delta.tensors()]
    if not (math.isfinite(delta.scale) and all(bool(torch.isfinite(tensor).all()) for tensor in cast)):
        raise _Misfit("holds numbers that are infinite or not-a-number, or too large for half precision.")
    moved = [tensor.contiguous().to(checkpoint.device) for tensor in cast]
    if isinstance(delta, LowRank):
        down, up = moved
        return LowRank(down, up, delta.scale)
    return Dense(moved[0], delta.scale)


def _convolved(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
