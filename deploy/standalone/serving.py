"""Plan of the gpu workers of this machine: one for each device, with every checkpoint that there is. Starts nothing."""

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
    """One gpu worker to start."""

    name: str
    slots: int
    env: Mapping[str, str] = field(repr=False)


def plan(
    wanted: Sequence[Path],
    workers: int | None,
    device: str | None,
    environ: Mapping[str, str],
    say: Callable[[str], None],
) -> list[PlannedWorker]:
    """Return the gpu workers to start; `workers` None is one for each GPU, or one.

    Raises `BadCheckpoint` or `StartFailed` if there is nothing to serve.
    """
    device = device or environ.get("FARM_DEVICE") or "auto"
    if device not in {"auto", "cpu", "cuda"}:
        raise StartFailed(f"{device!r} is not a device; choose auto, cpu or cuda with --device.")
    if workers is not None and workers < 1:
        raise StartFailed(f"--workers must be at least 1, not {workers}.")
    gpus = [] if device == "cpu" else gpu_ids(environ)
    sources = {**source(wanted, environ), "FARM_DEVICE": device}
    chosen({**environ, **sources}, say)
    planned = []
    for index in range(workers or max(1, len(gpus))):
        visible = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}
        planned.append(PlannedWorker(f"gpu{index}", SLOTS_GPU if gpus else SLOTS_CPU, {**sources, **visible}))
    return planned


def source(wanted: Sequence[Path], environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the settings that name what to serve: files and folders that were given, else the environment's, else the demo."""
    folders = [path for path in wanted if path.expanduser().is_dir() and not _is_checkpoint(path.expanduser())]
    if len(folders) > 1 or (folders and len(wanted) > 1):
        raise StartFailed("--checkpoint takes one folder of checkpoints, or one or more checkpoints.")
    if folders:
        return {"FARM_CHECKPOINT_DIR": str(folders[0].expanduser().resolve()), "FARM_CHECKPOINT": ""}
    if wanted:
        return {"FARM_CHECKPOINT": ",".join(str(path.expanduser().resolve()) for path in wanted)}
    if environ.get("FARM_CHECKPOINT") or environ.get("FARM_CHECKPOINT_DIR"):
        return {}
    return {"FARM_CHECKPOINT": str(DEMO.resolve())}


def chosen(environ: Mapping[str, str], say: Callable[[str], None]) -> Sequence[CheckpointFile]:
    """Return the checkpoints that workers with these settings serve from this machine. Raises `BadCheckpoint` for none."""
    wanted = [item.strip() for item in (environ.get("FARM_CHECKPOINT") or "").split(",") if item.strip()]
    paths, names = (
        [Path(one) for one in wanted if Path(one).exists()],
        [one for one in wanted if not Path(one).exists()],
    )
    served = [checkpoints.inspect(path) for path in paths]
    refused: Sequence[BadCheckpoint] = []
    folder = environ.get("FARM_CHECKPOINT_DIR")
    if folder and (names or not wanted):
        found, refused = checkpoints.scan(Path(folder))
        served += [file for file in found if not names or file.name in names]
    for error in refused:
        say(f"skipped: {error}")
    if not served:
        wish = f" named {', '.join(names)}" if names else ""
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


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "model_index.json").exists()
