"""An image between two steps, as bytes: what a later attempt needs to go on where this one stopped. Safetensors, no torch.

Only what the steps have made is kept. Prompts, noise and the picture to start from follow from the job, bit for bit. A seal over
all of it says that bytes are whole and from an image of the same mark; whatever is not so is `BadSnapshot`.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load, save

MAX_BYTES = (
    64 * 2**20
)  # of one job; an image takes 64 kB at 512 px for each of the few latents that its sampler looks back on
LENGTH_BYTES = 8  # of the header's length, with which safetensors begin
FLOAT_BYTES = 4

Arrays = dict[str, NDArray[np.float32]]


class BadSnapshot(ValueError):
    """Bytes that are damaged, or not a snapshot of this job by this code."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Where an image stands: `calls_done` of its pass `leg`, `steps_done` over all passes.

    `latents` are float32, (1, 4, height/8, width/8): tensors on the device when the engine takes a snapshot, which copies
    nothing, because a walk never writes to its latents again; numpy's arrays when it has been read back.
    """

    leg: int
    calls_done: int
    steps_done: int
    latents: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        """What its latents take."""
        return sum(math.prod(latent.shape) for latent in self.latents.values()) * FLOAT_BYTES

    def arrays(self) -> Arrays:
        """Fetch the latents from the device; waits for it."""
        return {name: _array(latent) for name, latent in self.latents.items()}


def pack(snapshots: Mapping[int, Snapshot], mark: bytes) -> bytes | None:
    """Write the snapshots of a job's images, by their index. None when they are not worth keeping: too large, or not a number."""
    if sum(snapshot.size_bytes for snapshot in snapshots.values()) > MAX_BYTES:
        return None
    arrays = {
        f"{index}/{name}": array for index, snapshot in snapshots.items() for name, array in snapshot.arrays().items()
    }
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return None
    facts = json.dumps(
        {
            "images": {index: [kept.leg, kept.calls_done, kept.steps_done] for index, kept in snapshots.items()},
            # The order of latents in memory chooses the kernels of the next step, and so decides bits.
            "strides": {name: array.strides for name, array in arrays.items()},
        }
    )
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(whole, {"facts": facts, "seal": _seal(facts, whole, mark)})


def unpack(data: bytes, mark: bytes) -> dict[int, Snapshot]:
    """Read what `pack` wrote with the same mark. Raises `BadSnapshot`."""
    try:
        arrays: Arrays = load(data)
        length = int.from_bytes(data[:LENGTH_BYTES], "little")
        about = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])["__metadata__"]
        facts, seal = about["facts"], about["seal"]
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadSnapshot(f"not a snapshot: {error}") from error
    if seal != _seal(facts, arrays, mark):
        raise BadSnapshot("the seal is broken: damaged, or of another job, checkpoint or version of the code")
    told = json.loads(facts)
    arrays = {name: _strided(array, told["strides"][name]) for name, array in arrays.items()}
    return {
        int(index): Snapshot(leg, calls_done, steps_done, _of(arrays, index))
        for index, (leg, calls_done, steps_done) in told["images"].items()
    }


def _of(arrays: Arrays, index: str) -> Arrays:
    own = f"{index}/"
    return {name.removeprefix(own): array for name, array in arrays.items() if name.startswith(own)}


def _array(latent: Any) -> NDArray[np.float32]:
    """Return numpy's array of one of its own or of a tensor on any device."""
    array: NDArray[np.float32] = latent if isinstance(latent, np.ndarray) else latent.cpu().numpy()
    return array


def _strided(array: NDArray[np.float32], strides: Sequence[int]) -> NDArray[np.float32]:
    """Return a copy that lies in memory by these strides, in bytes."""
    extent = sum((size - 1) * stride for size, stride in zip(array.shape, strides, strict=True)) + FLOAT_BYTES
    copy: NDArray[np.float32] = np.ndarray(array.shape, np.float32, bytearray(extent), strides=strides)
    copy[...] = array
    return copy


def _seal(facts: str, arrays: Arrays, mark: bytes) -> str:
    digest = hashlib.sha256(mark)
    digest.update(facts.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
