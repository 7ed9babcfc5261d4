"""Swaps: whose weights are in the resident modules. CheckpointWeights are summed up whenever they come or go.

What a copy holds is compared once it is in the modules: one that has changed is dropped, and the next tier is asked. What is in
the modules is compared before it leaves, and whenever someone vouches for pictures: they were made by it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import structlog
from torch import Tensor

from shared.errors import OutOfMemory
from shared.vocabulary.holdings import Tier
from worker.diffusion import out_of_memory
from worker.residency.copies import Copies
from worker.residency.modules import ResidentModules
from worker.residency.prices import Prices
from worker.residency.weights import CheckpointWeights

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SwapCount:
    """Swaps from one tier: how many, and how many seconds they took together."""

    number: int = 0
    seconds: float = 0.0


class HostCopies(Protocol):
    """The copies in RAM."""

    def flat(self, digest: str) -> Tensor | None:
        """Return the memory of a part; None if it is not here."""

    def drop_parts(self, digests: Collection[str]) -> None:
        """Forget every checkpoint that has one of these parts."""


class Swaps:
    """The sets of resident modules, by architecture, and spare VRAM. Thread-safe; `turn_to` is for the engine's thread."""

    def __init__(
        self, ram: HostCopies, prices: Prices, *, vram_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ram = ram
        self._prices = prices
        self._clock = clock
        self._sets: OrderedDict[str, ResidentModules] = OrderedDict()
        self._lock = Lock()  # over what is in modules and in spare VRAM
        self._are_sound = True
        self.vram = Copies(vram_bytes)
        self.counts: dict[Tier, SwapCount] = {}
        self.damaged: dict[Tier, int] = {}

    def add(self, modules: ResidentModules) -> None:
        """Add a set of modules, with weights in it."""
        with self._lock:
            self._sets[modules.architecture] = modules

    def modules(self, architecture: str) -> ResidentModules | None:
        """Return the modules of an architecture, if there are any."""
        return self._sets.get(architecture)

    def architectures(self) -> list[str]:
        """Return the architectures that have modules, least recently used first."""
        return list(self._sets)

    def drop(self, architecture: str) -> None:
        """Let go of a set of modules, and of what spare VRAM has for it."""
        with self._lock:
            self._sets.pop(architecture, None)
            self.vram.clear()

    def holds(self, weights: CheckpointWeights) -> bool:
        """Whether weights are in the modules now."""
        modules = self._sets.get(weights.architecture)
        held = modules.weights if modules else None
        return held is not None and held.key == weights.key

    def held(self) -> list[CheckpointWeights]:
        """Return what is in the modules."""
        return [one.weights for one in list(self._sets.values()) if one.weights is not None]

    def turn_to(self, weights: CheckpointWeights) -> bool:
        """Make weights resident; waits for the device. False if no copy of them is whole: they must be read again.

        Raises `OutOfMemory` where nothing could be summed up.
        """
        with self._lock:
            modules = self._sets[weights.architecture]
            self._sets.move_to_end(weights.architecture)
            if modules.weights is not None and modules.weights.key == weights.key:
                return True
            self._leave(modules)
            return self._take(modules, weights)

    def are_sound(self) -> bool:
        """Whether all weights in the modules, and all that have left them, are those that were read. Raises `OutOfMemory`."""
        with self._lock:
            self._are_sound = self._are_sound and all(one.are_sound() for one in self._sets.values())
            return self._are_sound

    def distrust(self) -> None:
        """Note that the device does not keep what it is given."""
        with self._lock:
            self._are_sound = False

    def note_damaged(self, tier: Tier, name: str) -> None:
        """Count a copy that was found changed before it was used."""
        self.damaged[tier] = self.damaged.get(tier, 0) + 1
        log.error("weights.damaged", tier=tier, checkpoint=name)

    def copy_out(self, weights: CheckpointWeights, flats: Mapping[str, Tensor]) -> bool:
        """Copy weights from the modules into host memory; False if they are not there any more."""
        with self._lock:
            modules = self._sets.get(weights.architecture)
            if modules is None or modules.weights is None or modules.weights.key != weights.key:
                return False
            modules.copy_out(flats)
            return True

    def copied_out(self, weights: CheckpointWeights, part: str) -> Any:
        """Return a module of its own with a part of opened weights, on the device."""
        with self._lock:
            modules = self._sets[weights.architecture]
            return modules.copy_of(part, self._flat_or_none(weights.parts[part].digest))

    def shed(self) -> None:
        """Give spare VRAM back: memory ran out."""
        with self._lock:
            if len(self.vram):
                log.warning("vram.shed", checkpoints=len(self.vram), bytes=self.vram.size_bytes)
            self.vram.clear()
            self.vram.max_bytes //= 2

    def _leave(self, modules: ResidentModules) -> None:
        """Keep what has made pictures in spare VRAM, if it is sound."""
        leaving = modules.weights
        missing = self.vram.missing_bytes(leaving) if leaving else 0
        if leaving is None or not self.vram.max_bytes or missing > self.vram.max_bytes:
            return
        if not modules.are_sound():
            self._condemn(leaving)
        elif self.vram.make_room(missing):
            try:
                with out_of_memory.translated():
                    self.vram.put(leaving, modules.clones(self.vram.lacking(leaving)))
            except OutOfMemory:
                log.warning("vram.full", bytes=self.vram.size_bytes)

    def _condemn(self, weights: CheckpointWeights) -> None:
        """Note that weights changed where they made pictures."""
        self._are_sound = False
        log.error("weights.damaged", tier=Tier.RESIDENT, checkpoint=weights.name)

    def _take(self, modules: ResidentModules, weights: CheckpointWeights) -> bool:
        """Copy weights into modules from the nearest tiers that have them whole."""
        while True:
            began, tier = self._clock(), self._tier(modules, weights)
            if tier is None:
                return False
            leaving = modules.weights
            wrong, was_sound = modules.take(weights, self._flat)
            if leaving is not None and not was_sound:
                self._condemn(leaving)
            if not wrong:
                self.vram.use(weights)
                self._count(tier, sum(weights.sizes.values()), self._clock() - began)
                return True
            self._forget(wrong, weights.name)

    def _tier(self, modules: ResidentModules, weights: CheckpointWeights) -> Tier | None:
        """Return the farthest tier that a part must come from; None if one is nowhere."""
        digests = [weights.parts[part].digest for part in modules.differing(weights)]
        if all(self.vram.flat(digest) is not None for digest in digests):
            return Tier.VRAM
        return Tier.RAM if all(self._flat_or_none(digest) is not None for digest in digests) else None

    def _flat_or_none(self, digest: str) -> Tensor | None:
        near = self.vram.flat(digest)
        return self._ram.flat(digest) if near is None else near

    def _flat(self, digest: str) -> Tensor:
        flat = self._flat_or_none(digest)
        assert flat is not None  # noqa: S101 - `_tier` has looked
        return flat

    def _forget(self, digests: Collection[str], name: str) -> None:
        """Drop copies that have changed: of each part the nearest, which was taken."""
        near = {digest for digest in digests if self.vram.flat(digest) is not None}
        far = set(digests) - near
        for tier, changed, copies in ((Tier.VRAM, near, self.vram), (Tier.RAM, far, self._ram)):
            if changed:
                self.note_damaged(tier, name)
                copies.drop_parts(changed)

    def _count(self, tier: Tier, size_bytes: int, seconds: float) -> None:
        before = self.counts.get(tier, SwapCount())
        self.counts[tier] = SwapCount(before.number + 1, before.seconds + seconds)
        self._prices.measured(tier, size_bytes, seconds)
