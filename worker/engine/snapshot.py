"""Snapshots: images between two steps as bytes, from which a later attempt resumes. Safetensors, no torch.

A snapshot holds only the results of steps; prompts, noise and the picture to start from follow from the job, bit for bit. Its
seal is a SHA-256 over the content and the mark of the job: bytes that are damaged or of another mark are `BadSnapshot`.
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
    """An image's progress and latents: `calls_done` of the pass `pass_index`, `steps_done` over all passes.

    `latents` are float32, (1, 4, height/8, width/8): tensors on the device when the engine takes a snapshot, which copies
    nothing, because a walk never writes to its latents again; numpy's arrays when `unpack` has read it.
    """

    pass_index: int
    calls_done: int
    steps_done: int
    latents: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of its latents."""
        return sum(math.prod(latent.shape) for latent in self.latents.values()) * FLOAT_BYTES

    def arrays(self) -> Arrays:
        """Copy the latents from the device; waits for it."""
        return {name: _array(latent) for name, latent in self.latents.items()}


def pack(snapshots: Mapping[int, Snapshot], mark: bytes) -> bytes | None:
    """Serialize the snapshots of a job's images, by their index. None if they exceed `MAX_BYTES` or hold not-a-number."""
    if sum(snapshot.size_bytes for snapshot in snapshots.values()) > MAX_BYTES:
        return None
    arrays = {
        f"{index}/{name}": array for index, snapshot in snapshots.items() for name, array in snapshot.arrays().items()
    }
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return None
    facts = json.dumps(
        {
            "images": {index: [one.pass_index, one.calls_done, one.steps_done] for index, one in snapshots.items()},
            # The order of latents in memory chooses the kernels of the next step, and so decides bits.
            "strides": {name: array.strides for name, array in arrays.items()},
        }
    )
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(contiguous, {"facts": facts, "seal": _seal(facts, contiguous, mark)})


def unpack(data: bytes, mark: bytes) -> dict[int, Snapshot]:
    """Read the output of `pack` with the same mark. Raises `BadSnapshot`."""
    try:
        arrays: Arrays = load(data)
        length = int.from_bytes(data[:LENGTH_BYTES], "little")
        metadata = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])["__metadata__"]
        facts, seal = metadata["facts"], metadata["seal"]
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadSnapshot(f"not a snapshot: {error}") from error
    if seal != _seal(facts, arrays, mark):
        raise BadSnapshot("the seal is broken: damaged, or of another job, checkpoint or version of the code")
    content = json.loads(facts)
    arrays = {name: _strided(array, content["strides"][name]) for name, array in arrays.items()}
    return {
        int(index): Snapshot(pass_index, calls_done, steps_done, _of(arrays, index))
        for index, (pass_index, calls_done, steps_done) in content["images"].items()
    }


def _of(arrays: Arrays, index: str) -> Arrays:
    prefix = f"{index}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _array(latent: Any) -> NDArray[np.float32]:
    """Return a numpy array of an array or of a tensor on any device."""
    array: NDArray[np.float32] = latent if isinstance(latent, np.ndarray) else latent.cpu().numpy()
    return array


def _strided(array: NDArray[np.float32], strides: Sequence[int]) -> NDArray[np.float32]:
    """Return a copy whose memory has these strides, in bytes."""
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
