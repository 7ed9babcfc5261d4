"""Batch limits per latent shape: the least of the profile's best batch, free memory, and earlier out-of-memory failures.

Pure policy, for the engine's thread only. Profiles and failures are stored in a JSON file, by device and checkpoint.
"""

import json
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import structlog

WORTHWHILE = 0.95  # a larger batch must cost less than this share of the time per sample of the smaller one
SMALLEST = 2  # one image with guidance
RECOVERY_CALLS = (
    1000  # full calls that went well before a lowered limit is raised by one image: a failed one costs a tick
)
HEADROOM = 0.8  # of the free memory that calls may take; decoding and fragments need the rest

Shape = tuple[int, int]  # latent height and width

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Duration and peak memory, beside the weights, of one UNet call of `samples`."""

    samples: int
    seconds: float
    peak_bytes: int


def best_batch(measurements: Iterable[Measurement]) -> int:
    """Return the smallest batch beyond which the time per sample no longer falls markedly (`WORTHWHILE`)."""
    best: Measurement | None = None
    for one in sorted(measurements, key=lambda one: one.samples):
        if best is None or one.seconds / one.samples < WORTHWHILE * best.seconds / best.samples:
            best = one
    return best.samples if best else SMALLEST


class BatchLimits:
    """The limits of one device and kind of weights, `key`. No call exceeds `ceiling`, whatever was measured.

    A shape that was never measured may have as many latent pixels a call as the nearest measured one; before any measurement
    only the ceiling holds. `free_bytes` returns the memory that calls may take now.
    """

    def __init__(self, path: Path | None, *, key: str, ceiling: int, free_bytes: Callable[[], int]) -> None:
        self._path = path
        self.key = key
        self._ceiling = ceiling
        self._free_bytes = free_bytes
        entry = _read(path).get(key)
        stored = entry if isinstance(entry, dict) else {}
        self._profiles = _profiles(stored.get("profiles"))
        self._failed = _failures(stored.get("failed"))
        self._full_calls = 0

    @property
    def shapes(self) -> frozenset[Shape]:
        """The measured shapes."""
        return frozenset(self._profiles)

    def limit(self, bucket: Hashable) -> int:
        """Return the most samples of one call; `bucket` begins with latent height and width."""
        shape = _shape(bucket)
        desired = min(self._ceiling, self._best(shape), self._affordable(shape))
        return max(1, min(max(desired, min(SMALLEST, self._ceiling)), self._survivable(shape)))

    def shrink(self, bucket: Hashable, samples: int) -> None:
        """Record that a call of so many samples ran out of memory, and halve the limit."""
        shape = _shape(bucket)
        self._failed[shape] = max(1, samples // 2)
        self._full_calls = 0
        log.warning("batch.shrunk", height=shape[0], width=shape[1], limit=self._failed[shape])
        self._write()

    def fitted(self, bucket: Hashable, samples: int) -> None:
        """Record that a call of so many samples fitted. `RECOVERY_CALLS` full ones raise a limit that a failure lowered.

        The memory's other user may be gone: another program, a LoRA, a picture that was being decoded.
        """
        tightest = self._tightest(_shape(bucket))
        if tightest is None or samples + SMALLEST <= self._failed[tightest]:
            return
        self._full_calls += 1
        if self._full_calls >= RECOVERY_CALLS:
            self._full_calls = 0
            self._grow(tightest)

    def _grow(self, shape: Shape) -> None:
        """Raise the limit that a failure left; drop it once another limit is lower."""
        self._failed[shape] += SMALLEST
        if self._failed[shape] >= min(self._ceiling, self._best(shape)):
            del self._failed[shape]
        log.info("batch.grown", height=shape[0], width=shape[1], limit=self.limit(shape))
        self._write()

    def record(self, shape: Shape, measurements: Iterable[Measurement]) -> None:
        """Store a shape's profile; it is empty where not even the smallest call fitted."""
        self._profiles[shape] = list(measurements)
        self._write()

    def _best(self, shape: Shape) -> int:
        profile = self._profiles.get(shape)
        if profile is not None:
            return best_batch(profile)
        nearest = self._nearest(shape)
        return int(best_batch(self._profiles[nearest]) * _area(nearest) / _area(shape)) if nearest else self._ceiling

    def _affordable(self, shape: Shape) -> int:
        """Return how many samples fit into the free memory, judged by the largest measured call."""
        reference = shape if self._profiles.get(shape) else self._nearest(shape)
        if reference is None:
            return self._ceiling
        largest = max(self._profiles[reference], key=lambda one: one.samples)
        sample_bytes = largest.peak_bytes / largest.samples * _area(shape) / _area(reference)
        return int(HEADROOM * self._free_bytes() / sample_bytes) if sample_bytes > 0 else self._ceiling

    def _survivable(self, shape: Shape) -> int:
        """Return the limit that failures leave."""
        tightest = self._tightest(shape)
        return self._ceiling if tightest is None else self._failed[tightest]

    def _tightest(self, shape: Shape) -> Shape | None:
        """Return the shape of the lowest failure limit among those not larger: too much for a smaller one is too much here."""
        smaller = (one for one in self._failed if _area(one) <= _area(shape))
        return min(smaller, key=lambda one: self._failed[one], default=None)

    def _nearest(self, shape: Shape) -> Shape | None:
        measured = [one for one, profile in self._profiles.items() if profile]
        return min(measured, key=lambda one: abs(_area(one) - _area(shape)), default=None)

    def _write(self) -> None:
        if self._path is None:
            return
        entry = {
            "profiles": {_name(shape): [asdict(one) for one in profile] for shape, profile in self._profiles.items()},
            "failed": {_name(shape): samples for shape, samples in self._failed.items()},
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Another worker of this machine may write too: a torn file is worse than a lost one.
            temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
            temporary.write_text(json.dumps({**_read(self._path), self.key: entry}, indent=1))
            temporary.replace(self._path)
        except OSError as error:
            log.warning("limits.not_remembered", path=str(self._path), error=str(error))


class LimitsByArchitecture:
    """The limits of several architectures. `open_` returns those of one, which is a bucket's third part."""

    def __init__(self, open_: Callable[[Hashable], BatchLimits]) -> None:
        self._open = cache(open_)

    def limit(self, bucket: Hashable) -> int:
        """Return the most samples of one call."""
        return self._of(bucket).limit(bucket)

    def shrink(self, bucket: Hashable, samples: int) -> None:
        """Record that a call of so many samples ran out of memory."""
        self._of(bucket).shrink(bucket, samples)

    def fitted(self, bucket: Hashable, samples: int) -> None:
        """Record that a call of so many samples fitted."""
        self._of(bucket).fitted(bucket, samples)

    def _of(self, bucket: Hashable) -> BatchLimits:
        assert isinstance(bucket, tuple)  # noqa: S101 - every bucket of the runner is
        return self._open(bucket[2])


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("limits.unreadable", path=str(path), error=str(error))
        return {}
    if not isinstance(content, dict):
        log.warning("limits.unreadable", path=str(path), error="not a JSON object")
        return {}
    return content


def _profiles(stored: Any) -> dict[Shape, list[Measurement]]:
    if not isinstance(stored, Mapping):
        return {}
    profiles = {}
    for name, rows in stored.items():
        shape = _parsed(name)
        measurements = [one for row in rows if (one := _measurement(row))] if isinstance(rows, list) else []
        if shape and measurements:
            profiles[shape] = measurements
    return profiles


def _measurement(row: Any) -> Measurement | None:
    """Read a stored row; None if no profile can have written it."""
    if not isinstance(row, Mapping):
        return None
    samples, seconds, peak_bytes = (_number(row.get(name)) for name in ("samples", "seconds", "peak_bytes"))
    return Measurement(int(samples), seconds, int(peak_bytes)) if samples >= 1 and seconds > 0 else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e15 else 0.0


def _failures(stored: Any) -> dict[Shape, int]:
    if not isinstance(stored, Mapping):
        return {}
    return {
        shape: samples
        for name, samples in stored.items()
        if (shape := _parsed(name)) and isinstance(samples, int) and samples >= 1
    }


def _shape(bucket: Hashable) -> Shape:
    assert isinstance(bucket, tuple)  # noqa: S101 - every bucket of the runner is
    return bucket[0], bucket[1]


def _name(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


def _parsed(name: str) -> Shape | None:
    height, _, width = name.partition("x")
    if not (height.isascii() and height.isdigit() and width.isascii() and width.isdigit()) or len(name) > 9:
        return None
    return (int(height), int(width)) if int(height) and int(width) else None


def _area(shape: Shape) -> int:
    return shape[0] * shape[1]
