"""The farm's own processes for tests, each in the very command that deployments use; a gpu worker only sketches."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.chaos import sketch
from tests.support import studio

ROOT = Path(__file__).parents[2]
CELERY = ("-m", "celery", "-A")
SLOTS = ("worker", "--pool", "threads", "--concurrency", "2", "--without-gossip", "--without-mingle", "-n")
API = ("-m", "api.serve", "--port")
COURIER = (*CELERY, "worker.cpu", *SLOTS, "courier@here", "--beat")
STOP_S = 30.0


def worker(name: str = "gpu0@here") -> tuple[str, ...]:
    """Return the arguments of a gpu worker."""
    return (*CELERY, "tests.chaos.gpu", *SLOTS, name)


@contextmanager
def running(
    argv: tuple[str, ...],
    folder: Path,
    changes: Mapping[str, str] | None = None,
    *,
    stdout: Path | None = None,
    code: Path = ROOT,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process, with settings changed, while the block lasts. What it says is in `folder`; stdout may go elsewhere.

    `code` is where the farm's sources are, should it be those of another day.
    """
    env = {
        **os.environ,
        "PYTHONPATH": str(code),
        "FARM_CHECKPOINT": str(studio.DEMO),
        "FARM_RESCUE_SECONDS": "0.2",
        "FARM_HEARTBEAT_SECONDS": "0.5",
        sketch.AMBUSH_VARIABLE: str(folder),
        sketch.NAME_VARIABLE: "sketch",
        sketch.STEP_VARIABLE: "0.01",
        **(changes or {}),
    }
    with (stdout or folder / "stdout").open("ab") as out, (folder / "stderr").open("ab") as err:
        # Python looks into its working directory first.
        process = subprocess.Popen([sys.executable, *argv], env=env, stdout=out, stderr=err, cwd=code)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
