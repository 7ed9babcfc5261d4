"""Report of the benchmark: the first row's ratios, every raw row, and a printed table."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import diffusers
import torch

HEADLINES = (
    "farm_over_bare_idle",
    "farm_over_bare_loaded",
    "lone_latency_over_bare",
    "overhead_share",
    "gain_2",
    "gain_4",
    "gain_8",
    "gain_16",
    "peak_mib",
)


def summary(rows: Sequence[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """Return what is written as JSON: the headlines are the first row's."""
    return {
        **{name: rows[0].get(name) for name in HEADLINES},
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        },
        "rows": list(rows),
    }


def table(result: dict[str, Any]) -> str:
    """Return the rows side by side, one figure a line."""
    rows = result["rows"]
    names = [
        name for name in rows[0] if name not in {"checkpoint", "unet_ms", "repeats", "batches", "compiled", "share"}
    ]
    heads = [f"{row['checkpoint']} {row['side']} px" for row in rows]
    lines = [["", *heads], *([name, *(_figure(row.get(name)) for row in rows)] for name in names)]
    lines += [
        ["UNet ms, batch " + batch, *(_figure(row["unet_ms"].get(batch)) for row in rows)]
        for batch in rows[0]["unet_ms"]
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads) + 1)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _figure(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
