"""Holdings: what a gpu worker can load, and from how near."""

from dataclasses import dataclass
from enum import StrEnum


class Tier(StrEnum):
    """Where a worker has the weights of a checkpoint, nearest first."""

    RESIDENT = "resident"
    VRAM = "vram"
    RAM = "ram"
    DISK = "disk"
    BUCKET = "bucket"


@dataclass(frozen=True, slots=True)
class Holding:
    """A checkpoint in a worker's library. `price_s` is the seconds to make it resident; `refused` why it cannot be."""

    checkpoint: str
    size_bytes: int
    tier: Tier
    price_s: float
    sha256: str | None = None
    refused: str | None = None
