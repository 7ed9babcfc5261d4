"""Prices of swaps: measured seconds to bring weights nearer, by tier, for what was not measured yet by its bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.vocabulary.holdings import Tier

SHARE = 0.2  # of the latest measurement in the average
# Before any was measured: seconds a byte of a GPU's own memory, of PCIe, of a local disk and of a bucket on a local network.
FIRST_S_PER_BYTE: Mapping[Tier, float] = {
    Tier.RESIDENT: 0.0,
    Tier.VRAM: 1 / 500e9,
    Tier.RAM: 1 / 10e9,
    Tier.DISK: 1 / 1e9,
    Tier.BUCKET: 1 / 0.2e9,
}
# From here a checkpoint goes through the RAM as well.
FAR = (Tier.DISK, Tier.BUCKET)


@dataclass(slots=True)
class Prices:
    """Averages over the last measurements. For one thread at a time."""

    _s_per_byte: dict[Tier, float] = field(default_factory=dict)

    def measured(self, tier: Tier, size_bytes: int, seconds: float) -> None:
        """Take in how long weights of so many bytes took from a tier into the modules, or from a far one into RAM."""
        if size_bytes <= 0:
            return
        now = seconds / size_bytes
        before = self._s_per_byte.get(tier, now)
        self._s_per_byte[tier] = before + SHARE * (now - before)

    def of(self, tier: Tier, size_bytes: int) -> float:
        """Return the seconds to make a checkpoint resident whose nearest tier this is."""
        way = (tier, Tier.RAM) if tier in FAR else (tier,)
        return size_bytes * sum(self._s_per_byte.get(one, FIRST_S_PER_BYTE[one]) for one in way)
