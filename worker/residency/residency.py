"""Residency: which checkpoint's weights are in the modules, and from how near the others come.

The life of a checkpoint's weights:

    file ──open──▶ RAM ──turn_to──▶ modules ──another's turn──▶ spare VRAM ──turn_to──▶ modules
                    └─────────── what was used least recently makes room ───────────┘

Any thread opens a checkpoint: a file is read on the thread that wants it. Only the engine's thread turns to another: it copies
from memory to memory, in place. What images in flight have opened stays at hand: in RAM, as soon as others want its modules.
"""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import structlog
from torch import Tensor

from shared.errors import BadCheckpoint, BadWeights, OutOfMemory, RenderFailed, WeightsMissing
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile, Stamp
from shared.vocabulary.holdings import Holding, Tier
from worker.diffusion import out_of_memory
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.residency import heap, reading
from worker.residency.host import HostMemory
from worker.residency.modules import ResidentModules
from worker.residency.prices import Prices
from worker.residency.reading import CPU, FileFacts
from worker.residency.source import CheckpointSource, GivenFile, GivenFiles, Listed
from worker.residency.swaps import SwapCount, Swaps
from worker.residency.weights import CheckpointWeights, Sums, architecture

MAX_SETS = 2
ROOM_S = 60.0  # that an image waits for memory which the checkpoints of others take

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Opened:
    """Keeps a checkpoint's weights at hand for an image in flight, until nothing refers to it any more."""

    weights: CheckpointWeights
    modules: ResidentModules


class Residency:
    """The checkpoints of one device."""

    def __init__(
        self,
        first: LoadedCheckpoint,
        *,
        facts: FileFacts | None = None,
        source: CheckpointSource | None = None,
        outfit: Callable[[LoadedCheckpoint], LoadedCheckpoint] = lambda loaded: loaded,
        ram_bytes: int = 0,
        vram_bytes: int = 0,
        room_s: float = ROOM_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with a checkpoint that is on the device, in its memory format; `outfit` brings others there like it."""
        self._source = source or GivenFiles()
        self._outfit = outfit
        self._dtype = first.dtype
        self._is_pinned = first.device.type == "cuda"
        self._clock = clock
        self._prices = Prices()
        self._known: dict[str, CheckpointWeights] = {}
        self._sizes: dict[str, int] = {}
        self._refused: dict[str, tuple[CheckpointFile, Stamp | None, str]] = {}
        self._kinds: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._again: dict[str, Future[None]] = {}
        self._rereader = ThreadPoolExecutor(1, "reread")
        # Taken in this order: by whoever reads; by whoever touches what is in modules, in `Swaps`; by who looks into host memory.
        self._at_disk = Lock()
        self._host = HostMemory(ram_bytes, room_s=room_s, clock=clock)
        self._swaps = Swaps(self._host, self._prices, vram_bytes=vram_bytes, clock=clock)
        self._resident = self._settle(first, facts or FileFacts())
        self._first = first.name

    @property
    def resident(self) -> str:
        """The checkpoint whose turn it is or was last."""
        return self._resident.name

    @property
    def modules(self) -> ResidentModules:
        """The modules that it is in."""
        return self.modules_of(self._resident.architecture)

    def modules_of(self, architecture: str) -> ResidentModules:
        """Return the modules of an architecture that something is known of."""
        modules = self._swaps.modules(architecture)
        assert modules is not None  # noqa: S101 - what is known has modules
        return modules

    @property
    def keeps(self) -> int:
        """How many checkpoints of the resident one's size can be kept warm, the resident one included."""
        size = max(self._resident.size_bytes, 1)
        return max(1, self._host.max_bytes // size, 1 + self._swaps.vram.max_bytes // size)

    @property
    def swaps(self) -> Mapping[Tier, SwapCount]:
        """How many swaps there were from each tier, and how long they took."""
        return dict(self._swaps.counts)

    @property
    def damaged(self) -> Mapping[Tier, int]:
        """How many copies were found changed before a picture was made from them, by tier."""
        return dict(self._swaps.damaged)

    def sha256(self, name: str) -> str | None:
        """Return the digest of a checkpoint's file, once it has been read."""
        known = self._known.get(name)
        return known.sha256 or None if known else None

    def digest(self, name: str) -> str | None:
        """Return the digest of a checkpoint's bits in memory as they were first read; None before that."""
        known = self._known.get(name)
        return known.digest if known else None

    def open(self, name: str) -> Opened:
        """Bring a checkpoint at hand, on this thread, and keep it there for as long as the result is kept; "" is the first.

        Raises what the library raises, `BadCheckpoint`, and `OutOfMemory` where it does not fit beside what others have opened.
        """
        name = name or self._first
        file, stamp = self._looked_up(name)
        with self._host.changed:
            known = self._current(name, stamp)
            if known is not None and self._is_at_hand(known):
                return self._keep(known)
        with self._at_disk:
            known = self._current(name, stamp)
            if known is None or not self._is_anywhere(known):
                known = self._read(name, file)
            opened = self._keep(known)
            self._secure(known)
            return opened

    def bring(self, name: str) -> None:
        """Bring a checkpoint nearer ahead of its first image, on this thread. Raises as `open`."""
        self.open(name)

    def turn_to(self, weights: CheckpointWeights) -> "Future[None] | None":
        """Make opened weights resident, on the engine's thread; waits for the device. Returns None once they are.

        A checkpoint whose copies were damaged is read again: returns what to wait for, and raises later what came of it.
        """
        again = self._again.get(weights.key)
        if again is not None:
            if not again.done():
                return again
            del self._again[weights.key]
            again.result()
        if self._swaps.turn_to(weights):
            self._host.use(weights)
            self._resident = weights
            return None
        if again is not None:
            self._swaps.distrust()
            raise RenderFailed("CheckpointWeights do not arrive on the device as they were read.")
        self._again[weights.key] = self._rereader.submit(self._read_again, weights)
        return self._again[weights.key]

    def price_s(self, weights: CheckpointWeights) -> float:
        """Return the seconds to make opened weights resident."""
        return self._prices.of(self._tier(weights) or Tier.RAM, weights.size_bytes)

    def vae(self, opened: Opened) -> Any:
        """Return a VAE with an opened checkpoint's weights on the device, apart from the resident modules. Any thread."""
        return self._swaps.copied_out(opened.weights, "vae")

    def are_sound(self) -> bool:
        """Whether no weights have changed in the modules. Raises `OutOfMemory` where that cannot be told."""
        return self._swaps.are_sound()

    def shed(self) -> None:
        """Give spare VRAM back: memory ran out."""
        self._swaps.shed()

    def holdings(self) -> Sequence[Holding]:
        """Return the whole library, with the tier that each checkpoint lies in, and why others cannot be loaded."""
        files, refused = self._source.files(), dict(self._source.refused())
        first = self._known.get(self._first)
        if first is not None and first.stamp is None:  # it was handed over in memory
            files = {self._first: GivenFile(first.size_bytes, None), **files}
        refused |= {name: why for name, why in self._bad_files().items() if name in files}
        self._sizes |= {name: listed.size_bytes for name, listed in files.items()}
        held = [self._holding(name, listed, refused.get(name)) for name, listed in files.items()]
        bad = {name: why for name, why in refused.items() if name not in files}
        # With the size that they had while they could be loaded: what has turned bad is told from what never was good.
        others = [Holding(name, self._sizes.get(name, 0), Tier.DISK, 0.0, None, why) for name, why in bad.items()]
        return sorted([*held, *others], key=lambda one: one.checkpoint)

    def _bad_files(self) -> Mapping[str, str]:
        """Return why files could not be read, as long as they are as they were then."""
        found = list(self._refused.items())
        return {name: why for name, (file, stamp, why) in found if checkpoints.present_stamp(file) == stamp}

    def _holding(self, name: str, listed: Listed, refused: str | None) -> Holding:
        known = self._known.get(name)
        near = self._tier(known) if known else None
        tier = near or (Tier.DISK if listed.path else Tier.BUCKET)
        size_bytes = known.size_bytes if known else listed.size_bytes
        sha256 = (known.sha256 if known else listed.sha256) or None
        return Holding(name, listed.size_bytes, tier, self._prices.of(tier, size_bytes), sha256, refused)

    def _tier(self, weights: CheckpointWeights) -> Tier | None:
        """Return the nearest tier that has weights whole; None for the file."""
        if self._swaps.holds(weights):
            return Tier.RESIDENT
        if weights in self._swaps.vram:
            return Tier.VRAM
        return Tier.RAM if weights in self._host else None

    def _looked_up(self, name: str) -> tuple[CheckpointFile | None, Stamp | None]:
        """Return a checkpoint's file and stamp; neither for one that was handed over in memory."""
        known = self._known.get(name)
        if known is not None and known.stamp is None:
            return None, None
        listed, began = self._source.files().get(name), self._clock()
        file = self._source.find(name)
        if listed is not None and listed.path is None:
            self._prices.measured(Tier.BUCKET, file.size_bytes, self._clock() - began)
        return file, checkpoints.present_stamp(file)

    def _current(self, name: str, stamp: Stamp | None) -> CheckpointWeights | None:
        """Return what is known of a file, unless it is another one now; one that cannot be looked at is as it was."""
        known = self._known.get(name)
        return known if known is not None and stamp in {None, known.stamp} else None

    def _is_anywhere(self, weights: CheckpointWeights) -> bool:
        return weights in self._host or self._swaps.holds(weights)

    def _is_at_hand(self, weights: CheckpointWeights) -> bool:
        """Whether weights, and all that others have opened for the same modules, survive each other's turns."""
        rivals = self._host.rivals(weights)
        if not rivals:
            return self._is_anywhere(weights)
        return all(one in self._host for one in (weights, *rivals))

    def _keep(self, weights: CheckpointWeights) -> Opened:
        self._host.open(weights)
        opened = Opened(weights, self.modules_of(weights.architecture))
        weakref.finalize(opened, self._host.let_go, weights.key).atexit = False
        return opened

    def _secure(self, weights: CheckpointWeights) -> None:
        """Copy into RAM what has to outlive a turn of others. Raises `OutOfMemory`."""
        rivals = self._host.rivals(weights)
        for one in (weights, *rivals) if rivals else ():
            if one not in self._host:
                self._host.make_room(one.name, sum(one.sizes[part] for part in self._host.lacking(one)))
                self._back_up(one)

    def _back_up(self, weights: CheckpointWeights) -> None:
        """Copy weights from the modules into RAM, where there is room for them."""
        modules = self._swaps.modules(weights.architecture)
        if modules is not None:
            lacking = self._host.lacking(weights)
            flats = {part: modules.layouts[part].empty(CPU, is_pinned=self._is_pinned) for part in lacking}
            if self._swaps.copy_out(weights, flats):
                self._host.put(weights, flats)

    def _prepare_ram(self, name: str, modules: ResidentModules) -> None:
        """Make room for a checkpoint that is about to be read; keep what it will take the place of, if room is left."""
        self._host.make_room(name, modules.size_bytes)
        held = modules.weights
        if held is not None and held not in self._host:
            lacking = sum(held.sizes[part] for part in self._host.lacking(held))
            if self._host.size_bytes + modules.size_bytes + lacking <= self._host.max_bytes:
                self._back_up(held)

    def _read(self, name: str, file: CheckpointFile | None) -> CheckpointWeights:
        """Read a file into RAM, or with modules of its own. Raises `BadCheckpoint` and `OutOfMemory`."""
        if file is None:
            raise BadCheckpoint(f"{name}: it has no file to be read again from.")
        began, stamp = self._clock(), checkpoints.present_stamp(file)
        try:
            # Looked at anew: it may have been replaced since it was listed.
            weights = self._read_as_pushed(name, checkpoints.inspect_anew(file))
        except BadWeights as error:
            self._refused[name] = file, stamp, str(error)
            if (
                stamp is None or checkpoints.present_stamp(file) != stamp
            ):  # no bad file, but one that went or came meanwhile
                raise WeightsMissing(str(error)) from error
            raise
        finally:
            heap.give_back()
        self._refused.pop(name, None)
        self._known[name] = weights
        seconds = self._clock() - began
        self._prices.measured(Tier.DISK, weights.size_bytes, seconds)
        log.info("checkpoint.read", checkpoint=name, seconds=round(seconds, 2), bytes=weights.size_bytes)
        return weights

    def _read_as_pushed(self, name: str, file: CheckpointFile) -> CheckpointWeights:
        """Read a file that must have its digest, if it is a copy of the bucket's: one that does not is fetched once more."""
        listed = self._source.files().get(name)
        weights = self._read_as_it_is(file)
        if listed is None or listed.sha256 in {None, weights.sha256}:
            return weights
        self._swaps.note_damaged(Tier.DISK, name)
        self._source.distrust(name)
        weights = self._read_as_it_is(self._source.find(name))
        if weights.sha256 != listed.sha256:
            raise BadCheckpoint(f"{file.path}: its bytes are not those that were pushed; push it again.")
        return weights

    def _read_as_it_is(self, file: CheckpointFile) -> CheckpointWeights:
        kind = reading.kind(file, self._dtype)
        if kind is not None and kind in self._kinds:
            architecture_, scheduler_config = self._kinds[kind]
            modules = self._swaps.modules(architecture_)
            if modules is not None:
                self._prepare_ram(file.name, modules)
                flats, facts = reading.read_directly(file, modules, is_pinned=self._is_pinned)
                return self._stored(file.name, facts, modules, scheduler_config, flats)
        loaded, facts = reading.read(file, self._dtype)
        modules = self._swaps.modules(architecture(loaded))
        if modules is None:
            return self._settle_anew(loaded, facts)
        if kind is not None:
            self._kinds[kind] = modules.architecture, loaded.scheduler_config
        self._prepare_ram(file.name, modules)
        flats = reading.flats_of(loaded, modules.layouts, is_pinned=self._is_pinned)
        return self._stored(file.name, facts, modules, loaded.scheduler_config, flats)

    def _stored(
        self,
        name: str,
        facts: FileFacts,
        modules: ResidentModules,
        scheduler_config: Mapping[str, Any],
        flats: Mapping[str, Tensor],
    ) -> CheckpointWeights:
        """Keep a checkpoint in RAM that modules are there for."""
        sums = {part: Sums.of(flat) for part, flat in flats.items()}
        weights = CheckpointWeights.of(
            name, facts.sha256, facts.stamp, modules.architecture, scheduler_config, sums, flats
        )
        self._host.put(weights, flats)
        return weights

    def _settle_anew(self, loaded: LoadedCheckpoint, facts: FileFacts) -> CheckpointWeights:
        """Give an architecture modules of its own, which begin with this checkpoint."""
        self._drop_a_set()
        try:
            with out_of_memory.translated():
                return self._settle(self._outfit(loaded), facts)
        except OutOfMemory:
            self.shed()
        with out_of_memory.translated():
            return self._settle(self._outfit(loaded), facts)

    def _settle(self, loaded: LoadedCheckpoint, facts: FileFacts) -> CheckpointWeights:
        """Take a checkpoint on the device as resident modules."""
        modules = ResidentModules.of(loaded, architecture(loaded))
        if facts.kind is not None:
            self._kinds[facts.kind] = modules.architecture, loaded.scheduler_config
        weights = modules.begin(loaded, facts.sha256, facts.stamp)
        heap.give_back()
        self._known[loaded.name] = weights
        self._swaps.add(modules)
        return weights

    def _drop_a_set(self) -> None:
        """Let go of the modules of an architecture that no image in flight uses. Raises `OutOfMemory` if all are in use."""
        while len(present := self._swaps.architectures()) >= MAX_SETS:
            with self._host.changed:
                self._host.wait_until(lambda: bool(set(present) - self._host.architectures()))
                idle = next((one for one in present if one not in self._host.architectures()), None)
                if idle is None:
                    raise OutOfMemory(f"Images of {MAX_SETS} other kinds of checkpoints are being made.")
                # Whoever opens one of them from now on reads it, and waits for that behind us.
                for weights in [one for one in self._known.values() if one.architecture == idle]:
                    self._host.drop(weights)
                    del self._known[weights.name]
            self._swaps.drop(idle)

    def _read_again(self, weights: CheckpointWeights) -> None:
        """Read a checkpoint whose copies were damaged. Raises `BadCheckpoint` if its file is another one now."""
        with self._at_disk:
            file = self._source.find(weights.name)
            again = self._read_as_it_is(checkpoints.inspect_anew(file))
            if again.key != weights.key:
                raise BadCheckpoint(f"{file.path}: it was replaced while an image was made with it.")
            if again.digests() != weights.digests():
                raise BadCheckpoint(f"{file.path}: it is not read as before; its disk or this machine's memory errs.")
