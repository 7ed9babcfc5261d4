"""Resident modules: one set of UNet, VAE and text encoder, whose weights are those of one checkpoint at a time.

For one thread at a time: `Residency` holds its lock.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shared.files.checkpoints import Stamp
from worker.diffusion import out_of_memory
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.transfer import Readback
from worker.residency import arena
from worker.residency.arena import Layout
from worker.residency.weights import PARTS, CheckpointWeights, Sums

FlatOf = Callable[[str], Tensor]


@dataclass(slots=True, eq=False, weakref_slot=True)
class ResidentModules:
    """The modules of one architecture. `weights` are those in them, None after a copy that went wrong.

    `constants` are the buffers, by part and name: they are the same for all checkpoints, and in no file.
    """

    loaded: LoadedCheckpoint
    architecture: str
    layouts: Mapping[str, Layout]
    constants: Mapping[str, Mapping[str, Tensor]]
    weights: CheckpointWeights | None = None
    _flats: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, loaded: LoadedCheckpoint, architecture: str) -> "ResidentModules":
        """Take over the modules of a checkpoint that was loaded onto the device, in the memory format that they have now."""
        layouts = {part: Layout.of(getattr(loaded, part)) for part in PARTS}
        constants = {part: _buffers(getattr(loaded, part)) for part in PARTS}
        flats = {part: arena.move_in(getattr(loaded, part)) for part in PARTS}
        return cls(loaded, architecture, layouts, constants, _flats=flats)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(flat.numel() for flat in self._flats.values())

    def begin(self, loaded: LoadedCheckpoint, sha256: str, stamp: Stamp | None) -> CheckpointWeights:
        """Take what is in the modules for the weights of a checkpoint, and return the facts of it."""
        sums = {part: Sums.of(flat) for part, flat in self._flats.items()}
        self.weights = CheckpointWeights.of(
            loaded.name, sha256, stamp, self.architecture, loaded.scheduler_config, sums, self._flats
        )
        return self.weights

    def differing(self, weights: CheckpointWeights) -> list[str]:
        """Return the parts in which these weights differ from those in the modules."""
        held = self.weights.digests() if self.weights else {}
        return [part for part, digest in weights.digests().items() if held.get(part) != digest]

    @torch.inference_mode()
    def take(self, weights: CheckpointWeights, flat_of: FlatOf) -> tuple[set[str], bool]:
        """Copy weights in place, those parts that differ; `flat_of` returns a part's memory by its digest.

        Returns the digests of the parts whose copy is not what was once read, and leaves the modules without weights then; and
        whether what it overwrote was as it had been read. Waits for the device. Raises `OutOfMemory`.
        """
        parts, leaving, self.weights = self.differing(weights), self.weights, None
        with out_of_memory.translated():
            pairs = [arena.exchange(self._flats[part], flat_of(weights.parts[part].digest)) for part in parts]
            found = Readback(*(rows for pair in pairs for rows in pair)).tensors() if pairs else ()
        was_sound = leaving is None or not _differing(leaving, parts, found[::2])
        wrong = _differing(weights, parts, found[1::2])
        self.weights = None if wrong else weights
        return {weights.parts[part].digest for part in wrong}, was_sound

    @torch.inference_mode()
    def are_sound(self) -> bool:
        """Whether what is in the modules is what was once read; waits for the device once. Raises `OutOfMemory`."""
        return self.weights is None or not self._wrong(self.weights, PARTS)

    @torch.inference_mode()
    def copy_out(self, flats: Mapping[str, Tensor]) -> None:
        """Copy the weights into pieces of memory by part; waits for the device."""
        for part, flat in flats.items():
            flat.copy_(self._flats[part])

    @torch.inference_mode()
    def clones(self, parts: Collection[str]) -> dict[str, Tensor]:
        """Copy some parts' weights to other memory of the device."""
        return {part: self._flats[part].clone() for part in parts}

    def copy_of(self, part: str, source: Tensor | None) -> Any:
        """Return a copy of a module with the weights of a piece of memory, by default those in it now."""
        copied = copy.deepcopy(getattr(self.loaded, part))
        if source is not None:
            flat = arena.move_in(copied)
            with torch.inference_mode():
                flat.copy_(source)
        return copied

    def _wrong(self, weights: CheckpointWeights, parts: Sequence[str]) -> list[str]:
        with out_of_memory.translated():
            found = Readback(*(arena.sums(self._flats[part]) for part in parts)).tensors() if parts else ()
        return _differing(weights, parts, found)


def _buffers(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.named_buffers()}


def _differing(weights: CheckpointWeights, parts: Sequence[str], found: Sequence[Tensor]) -> list[str]:
    """Return the parts whose sums are not those that were found when they were first read."""
    return [part for part, rows in zip(parts, found, strict=True) if not torch.equal(rows, weights.parts[part].rows)]
