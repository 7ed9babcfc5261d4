"""The device bundle: engine, weight folders and facts of the device. No torch here: `device` loads it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shared.files.weights import Shelves
from worker.engine.engine import Engine
from worker.engine.request import Pixels
from worker.health.fitness import Proof


class Judge(Protocol):
    """Says which pictures must not be delivered."""

    def flags(self, pixels: Pixels) -> bool:
        """Whether a picture (height, width, 3) is to be blacked out."""


@dataclass(frozen=True, slots=True)
class DeviceBundle:
    """Has an engine that is not started. `memory` returns bytes by kind. Without a `proof` the worker is not examined."""

    engine: Engine[Any, Any]
    shelves: Shelves
    device_name: str
    safety: Judge | None = None
    memory: Callable[[], Mapping[str, float]] = dict
    proof: Proof | None = None
    gpu_uuid: str | None = None
    # An ordinary exit would crash in the compiler's own threads meanwhile.
    is_compiling: Callable[[], bool] = lambda: False
    # The checkpoint's; its beginning is the name by which people know it.
    sha256: str | None = None
