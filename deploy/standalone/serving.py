"""Plan of the gpu workers of this machine: checkpoints, number of workers, GPUs. Starts nothing."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.standalone.program import StartFailed
from shared.errors import BadCheckpoint
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile

DEMO = Path(__file__).parent / "checkpoints" / "farm-demo.safetensors"
# A slot is one job in flight; the engine batches across them, which pays on a GPU and hardly on a CPU.
SLOTS_GPU, SLOTS_CPU = 16, 4


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """One gpu worker to start: the `rank`-th of its checkpoint, counted from 1."""

    name: str
    checkpoint: str
    rank: int
    slots: int
    env: Mapping[str, str] = field(repr=False)


def plan(
    wanted: Path | None, workers: int, device: str | None, environ: Mapping[str, str], say: Callable[[str], None]
) -> list[PlannedWorker]:
    """Return the gpu workers to start. Raises `BadCheckpoint` or `StartFailed` if there is nothing to serve."""
    device = device or environ.get("FARM_DEVICE") or "auto"
    if device not in {"auto", "cpu", "cuda"}:
        raise StartFailed(f"{device!r} is not a device; choose auto, cpu or cuda with --device.")
    if workers < 1:
        raise StartFailed(f"--workers must be at least 1, not {workers}.")
    gpus = [] if device == "cpu" else gpu_ids(environ)
    planned: list[PlannedWorker] = []
    for file in chosen(wanted, environ, say):
        for rank in range(1, workers + 1):
            index = len(planned)
            env = {"FARM_CHECKPOINT": str(file.path.resolve()), "FARM_DEVICE": device}
            if gpus:
                env["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
            slots = SLOTS_GPU if gpus else SLOTS_CPU
            planned.append(PlannedWorker(f"gpu{index}.{file.name}", file.name, rank, slots, env))
    return planned


def chosen(wanted: Path | None, environ: Mapping[str, str], say: Callable[[str], None]) -> Sequence[CheckpointFile]:
    """Return the checkpoints to serve: the given one, else the valid ones of FARM_CHECKPOINT_DIR, else the demo."""
    named, folder = environ.get("FARM_CHECKPOINT"), environ.get("FARM_CHECKPOINT_DIR")
    if wanted is None and named and (Path(named).exists() or not folder):
        wanted = Path(named)
    if wanted is not None or not folder:
        return [checkpoints.inspect((wanted or DEMO).expanduser())]
    found, refused = checkpoints.scan(Path(folder))
    for error in refused:
        say(f"skipped: {error}")
    served = [file for file in found if named in {None, "", file.name}]
    if not served:
        wish = f" named {named}" if named else ""
        raise BadCheckpoint(f"FARM_CHECKPOINT_DIR, {folder}, holds no checkpoint{wish} that can be served.")
    return served


def gpu_ids(environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs that workers may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip() not in {"", "-1"}]
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if tool is None:
        return []
    try:
        listing = subprocess.run(
            [tool, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.stdout.split()
