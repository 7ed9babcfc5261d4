"""Budgets of memory for checkpoints that are kept warm: what a setting says, or a share of what is free."""

from pathlib import Path

SHARE = 0.5  # of what is free: pictures, LoRAs and other programs need the rest
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def ram(told: int | None) -> int:
    """Return the bytes of host memory for checkpoints."""
    return told if told is not None else int(SHARE * available_bytes())


def vram(told: int | None, free_bytes: int) -> int:
    """Return the bytes of a GPU's memory for checkpoints, of which so many are free; 0 for a CPU."""
    return min(told, free_bytes) if told is not None else int(SHARE * free_bytes)


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Return the host memory that may still be taken: of the machine, or less where a container's limit is nearer."""
    lines = _read(meminfo).splitlines()
    machine = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        return max(0, min(machine, int(limit) - int(used)))
    return machine


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
