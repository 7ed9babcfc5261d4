"""CheckpointWeights of a checkpoint: facts that every copy of them must agree with, whichever tier it lies in."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shared.files.checkpoints import Stamp
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.residency import arena

PARTS = ("unet", "vae", "text_encoder")
# What says where a config came from, and nothing of the numbers that follow from it.
PROVENANCE = {"architectures", "transformers_version", "torch_dtype", "dtype", "name_or_path"}


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What a part's bits add up to: `rows`, (rows,) int64 on the host, for every check; `digest` tells parts apart."""

    rows: Tensor
    digest: str

    @classmethod
    def of(cls, flat: Tensor) -> "Sums":
        """Sum up a piece of memory; waits for its device."""
        rows = arena.sums(flat)
        return cls(rows.cpu(), arena.digest(flat, rows))


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointWeights:
    """A checkpoint as it was first read. `sha256` is the file's; `parts` has the sums of each of `PARTS`.

    `stamp` changes when the file does. Two readings of equal files are one and the same by `key`.
    """

    name: str
    sha256: str
    stamp: Stamp | None
    architecture: str
    scheduler_config: Mapping[str, Any]
    parts: Mapping[str, Sums]
    sizes: Mapping[str, int]

    @classmethod
    def of(
        cls,
        name: str,
        sha256: str,
        stamp: Stamp | None,
        architecture: str,
        scheduler_config: Mapping[str, Any],
        parts: Mapping[str, Sums],
        flats: Mapping[str, Tensor],
    ) -> "CheckpointWeights":
        """Put together what was found out about a checkpoint whose parts lie in these pieces of memory."""
        sizes = {part: flat.numel() for part, flat in flats.items()}
        return cls(name, sha256, stamp, architecture, scheduler_config, parts, sizes)

    @property
    def key(self) -> str:
        """What tells these weights from any other, also from what had the same name before."""
        return f"{self.name} {self.sha256}"

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts in memory."""
        return sum(self.sizes.values())

    @property
    def digest(self) -> str:
        """Digest of the bits of all parts, which workers with the same file and the same kind of device share."""
        return hashlib.sha256(" ".join(self.parts[part].digest for part in PARTS).encode()).hexdigest()

    def digests(self) -> dict[str, str]:
        """Return each part's digest."""
        return {part: sums.digest for part, sums in self.parts.items()}


def architecture(checkpoint: LoadedCheckpoint) -> str:
    """Return a name for all that the modules of a checkpoint are beside their weights; equal ones can swap theirs."""
    facts = {part: [_config(getattr(checkpoint, part)), _shapes(getattr(checkpoint, part))] for part in PARTS}
    text = json.dumps([str(checkpoint.dtype), facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _config(module: Any) -> Mapping[str, Any]:
    config = getattr(module, "config", {})
    entries = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: value for name, value in entries.items() if name not in PROVENANCE and not name.startswith("_")}


def _shapes(module: Any) -> list[tuple[str, str]]:
    return [(str(tuple(tensor.shape)), str(tensor.dtype)) for tensor in arena.tensors(module)]
