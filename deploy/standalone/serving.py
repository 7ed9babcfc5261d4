"""Plan of the gpu workers of this machine: one for each device, with every checkpoint that there is. Starts nothing."""

import shutil
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.standalone.program import StartFailed
from shared.errors import BadCheckpoint
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile
from shared.files.wanted import Wanted, expanded, is_path
from shared.fleet import weights_bucket
from shared.infra.storage import Storage
from shared.settings import load

DEMO = Path(__file__).parent / "checkpoints" / "farm-demo.safetensors"
# A slot is one job in flight; the engine batches across them, which pays on a GPU and hardly on a CPU.
SLOTS_GPU, SLOTS_CPU = 16, 4
# As a folder, and not as the only file: what is pushed while it is served shows up beside it.
DEMO_ENV: Mapping[str, str] = {"FARM_CHECKPOINT_DIR": str(DEMO.parent.resolve())}


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """One gpu worker to start."""

    name: str
    slots: int
    env: Mapping[str, str] = field(repr=False)


def plan(workers: int | None, device: str | None, environ: Mapping[str, str]) -> list[PlannedWorker]:
    """Return the gpu workers to start; `workers` None is one for each GPU, or one. Raises `StartFailed`."""
    device = device or environ.get("FARM_DEVICE") or "auto"
    if device not in {"auto", "cpu", "cuda"}:
        raise StartFailed(f"{device!r} is not a device; choose auto, cpu or cuda with --device.")
    if workers is not None and workers < 1:
        raise StartFailed(f"--workers must be at least 1, not {workers}.")
    gpus = [] if device == "cpu" else gpu_ids(environ)
    planned = []
    for index in range(workers or max(1, len(gpus))):
        visible = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}
        planned.append(
            PlannedWorker(f"gpu{index}", SLOTS_GPU if gpus else SLOTS_CPU, {"FARM_DEVICE": device, **visible})
        )
    return planned


def source(wanted: Sequence[Path]) -> Mapping[str, str]:
    """Return the settings that name what is to be served: a folder, or files and names; none where the environment counts."""
    folders = [path for path in wanted if expanded(path).is_dir() and not _is_checkpoint(expanded(path))]
    if len(folders) > 1 or (folders and len(wanted) > 1):
        raise StartFailed("--checkpoint takes one folder of checkpoints, or one or more checkpoints.")
    if folders:
        return {"FARM_CHECKPOINT_DIR": str(expanded(folders[0]).resolve()), "FARM_CHECKPOINT": ""}
    items = [str(expanded(path).resolve()) if is_path(str(path)) else str(path) for path in wanted]
    return {"FARM_CHECKPOINT": ",".join(items)} if items else {}


def here(environ: Mapping[str, str], say: Callable[[str], None]) -> Sequence[CheckpointFile]:
    """Return the checkpoints on this machine that workers with these settings serve. Raises `BadCheckpoint` for a bad file."""
    wanted, folder = Wanted.read(environ.get("FARM_CHECKPOINT")), environ.get("FARM_CHECKPOINT_DIR")
    served = [checkpoints.inspect(path) for path in wanted.files]
    if not folder or not (wanted.is_everything or wanted.names):
        return served
    found, refused = checkpoints.scan(Path(folder))
    for error in refused:
        say(f"skipped: {error}")
    return [*served, *(file for file in found if wanted.wants(file.name))]


def in_bucket(environ: Mapping[str, str]) -> Collection[str]:
    """Return the names of the checkpoints in the farm's bucket. Raises `StartFailed` or `StorageUnavailable`."""
    given = {
        name.removeprefix("FARM_").lower(): text
        for name, text in environ.items()
        if name.startswith("FARM_S3_") and text
    }
    try:
        settings = load(**given)
    except SystemExit as error:
        raise StartFailed(str(error).removeprefix("farm: ")) from error
    return {file.name for file in weights_bucket.look(Storage(settings), f"{weights_bucket.CHECKPOINT}/")}


def from_bucket(environ: Mapping[str, str], names: Collection[str]) -> Sequence[str]:
    """Return which of the bucket's checkpoints workers serve that have none on this machine.

    Raises `BadCheckpoint` if those that were named are not there. If nothing was named, an empty bucket is nothing wrong.
    """
    wanted, folder = Wanted.read(environ.get("FARM_CHECKPOINT")), environ.get("FARM_CHECKPOINT_DIR")
    served = sorted(filter(wanted.wants, names))
    if served or (wanted.is_everything and not folder):
        return served
    named = f" named {', '.join(wanted.names)}" if wanted.names else ""
    push = "push one: farm checkpoints push FILE" + (f" --name {wanted.names[0]}" if wanted.names else "")
    there = f"the bucket ({', '.join(sorted(names)[:10]) or 'which has none'})"
    raise BadCheckpoint(
        f"There is no checkpoint{named} to serve, neither in {folder or 'a file of this machine'} nor in {there}.",
        fix=f"put one into {folder}, or {push}" if folder else f"name a file or folder with --checkpoint, or {push}",
    )


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
