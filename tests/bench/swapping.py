"""`python -m tests.bench.swapping FOLDER`: swaps on the device of one gpu worker, whose checkpoints are the files of a folder.

In a process of its own, so that its memory is that of weights and of nothing else. After each swap as many bytes are copied
plainly, so that a busy machine slows both alike. Prints JSON for `make bench-residency`. Asserts nothing: a timing is no test.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from shared.files import checkpoints, headers
from shared.files.checkpoints import CheckpointFile
from shared.settings import Settings
from tests.bench.memory import MIB, Memory
from tests.support.studio import spec
from worker import device
from worker.bundle import DeviceBundle
from worker.engine.engine import run_alone
from worker.engine.request import Pixels
from worker.residency.arena import ROW_BYTES
from worker.residency.source import GivenFiles
from worker.residency.weights import PARTS

# Larger than a processor's caches, and little beside a full-size checkpoint.
SCRATCH_BYTES = 256 * 2**20


class PlainCopy:
    """Copies of memory to memory, with nothing else."""

    def __init__(self) -> None:
        self._from, self._to = (torch.full((SCRATCH_BYTES,), value, dtype=torch.uint8) for value in (1, 2))
        self._at = 0

    def seconds(self, size_bytes: int) -> float:
        """Copy so many bytes, each time others."""
        left, began = size_bytes, time.perf_counter()
        while left:
            part = slice(self._at, min(SCRATCH_BYTES, self._at + left))
            self._to[part].copy_(self._from[part])
            left -= part.stop - part.start
            self._at = part.stop % SCRATCH_BYTES
        return time.perf_counter() - began


class TimedSwaps:
    """Swaps of one device, in seconds: of a swap with all that leads to it, of its copy in place, of a plain copy."""

    def __init__(self, bundle: DeviceBundle) -> None:
        self._residency: Any = bundle.residency
        self._copy = PlainCopy()
        self.whole_s: list[float] = []
        self.turn_s: list[float] = []
        self.plain_s: list[float] = []

    def to(self, name: str) -> None:
        """Make a checkpoint resident, as an image that needs it does."""
        began = time.perf_counter()
        opened = self._residency.open(name)
        differing = sum(opened.weights.sizes[part] for part in opened.modules.differing(opened.weights))
        turned = time.perf_counter()
        assert self._residency.turn_to(opened.weights) is None
        ended = time.perf_counter()
        self.whole_s.append(ended - began)
        self.turn_s.append(ended - turned)
        self.plain_s.append(self._copy.seconds(differing))

    def clear(self) -> None:
        """Forget what was measured."""
        for measured in (self.whole_s, self.turn_s, self.plain_s):
            measured.clear()


def main() -> None:
    """Measure and print."""
    asked = options().parse_args()
    files = [checkpoints.inspect(path) for path in sorted(asked.folder.glob("*.safetensors"))]
    print(json.dumps(measured(files, asked)))  # noqa: T201 - a command line tool


def options() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.swapping", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--keeps", type=int, default=2, help="how many checkpoints have room in FARM_RAM_BYTES")
    parser.add_argument("--dtype", choices=[*device.DTYPES], default="fp32")
    parser.add_argument("--pictures", action="store_true", help="compare pictures before and after")
    return parser


def measured(files: Sequence[CheckpointFile], asked: argparse.Namespace) -> dict[str, Any]:
    """Swap around the files, once to begin with and then so often; all figures."""
    bound = asked.keeps * weights_bytes(files[0], device.DTYPES[asked.dtype])
    settings = Settings(device="cpu", dtype=asked.dtype, ram_bytes=bound, profile_seconds=0)
    bundle = device.load(settings, files[0], GivenFiles(*files))
    names = [file.name for file in files]
    before = pictures(bundle, names) if asked.pictures else []
    swaps = TimedSwaps(bundle)
    with Memory(os.getpid()) as memory:
        loaded_mib = memory.now_mib()
        order = cycle([*names[1:], names[0]])
        for name in islice(order, len(names)):
            swaps.to(name)
        first_mib = memory.now_mib()
        swaps.clear()
        for name in islice(order, asked.swaps):
            swaps.to(name)
        last_mib = memory.now_mib()
    after = pictures(bundle, names) if asked.pictures else []
    return {
        "swaps": asked.swaps,
        "whole_s": round(median(swaps.whole_s), 4),
        "in_place_s": round(median(swaps.turn_s), 4),
        "plain_copy_s": round(median(swaps.plain_s), 4),
        "swap_over_copy": round(
            median(ours / plain for ours, plain in zip(swaps.turn_s, swaps.plain_s, strict=True)), 2
        ),
        "memory_mib": {"loaded": round(loaded_mib), "first round": round(first_mib), "last": round(last_mib)},
        "growth_mib": round(last_mib - first_mib),
        "bound_mib": round(bound / MIB),
        "peak_over_bound": round((memory.peak_mib - loaded_mib) * MIB / bound, 3),
        "pictures": len(after),
        "pictures_changed": sum(one.tobytes() != other.tobytes() for one, other in zip(before, after, strict=True)),
    }


def weights_bytes(file: CheckpointFile, dtype: torch.dtype) -> int:
    """Return the memory that a checkpoint's weights take: its numbers, and the ends of its parts' arenas."""
    numbers = sum(math.prod(tensor.shape) for tensor in headers.read_header(file.path).values())
    return numbers * dtype.itemsize + 2 * len(PARTS) * ROW_BYTES


def pictures(bundle: DeviceBundle, names: Sequence[str]) -> list[Pixels]:
    """Render one with each checkpoint."""
    runner = bundle.engine._runner
    return [run_alone(runner, spec(checkpoint=name, width=64, height=64, steps=2)) for name in names]


if __name__ == "__main__":
    main()
