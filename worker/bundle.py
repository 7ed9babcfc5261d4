"""The device bundle: engine, weight folders and facts of the device. No torch here: `device` loads it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.files.weights import Shelves
from shared.vocabulary.holdings import Holding, Tier
from worker.engine.engine import Engine
from worker.engine.request import Pixels
from worker.health.fitness import Proof


class Judge(Protocol):
    """Says which pictures must not be delivered."""

    def flags(self, pixels: Pixels) -> bool:
        """Whether a picture (height, width, 3) is to be blacked out."""


class SwapTotal(Protocol):
    """Swaps from one tier."""

    @property
    def number(self) -> int:
        """How many there were."""

    @property
    def seconds(self) -> float:
        """How long they took together."""


class DeviceCheckpoints(Protocol):
    """The checkpoints that a device can render with. Thread-safe; `worker.residency` is the real one."""

    @property
    def resident(self) -> str:
        """The one whose turn it is or was last."""

    @property
    def keeps(self) -> int:
        """How many can be kept warm."""

    @property
    def swaps(self) -> Mapping[Tier, SwapTotal]:
        """Swaps into the modules from each tier."""

    @property
    def damaged(self) -> Mapping[Tier, int]:
        """How many copies were found changed before a picture was made from them, by tier."""

    def sha256(self, name: str) -> str | None:
        """Return the digest of a checkpoint's file, once it has been read."""

    def bring(self, name: str) -> None:
        """Bring a checkpoint nearer ahead of its first image, on this thread. Raises a `FarmError`."""

    def holdings(self) -> Sequence[Holding]:
        """Return the whole library, with the tier and price of each checkpoint, and why others are refused."""


@dataclass(frozen=True, slots=True)
class DeviceBundle:
    """Has an engine that is not started. `memory` returns bytes by kind. Without a `proof` the worker is not examined."""

    engine: Engine[Any, Any]
    residency: DeviceCheckpoints
    shelves: Shelves
    device_name: str
    safety: Judge | None = None
    memory: Callable[[], Mapping[str, float]] = dict
    proof: Proof | None = None
    gpu_uuid: str | None = None
    # An ordinary exit would crash in the compiler's own threads meanwhile.
    is_compiling: Callable[[], bool] = lambda: False
