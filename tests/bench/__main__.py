"""`python -m tests.bench`: the engine against a bare diffusers pipeline, on the same device, checkpoint, sizes and steps.

Everything is a ratio of figures taken in one run, the rivals by turns, so that a busy machine slows both. Writes
`.farm/bench/engine.json` and prints a table. Asserts nothing: a timing is no test.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.bench import report, studio
from tests.bench.measure import Bench

OUT = Path(".farm/bench/engine.json")
CUDA_SECONDS = 540.0  # what is not done then is left out: the whole table takes less than ten minutes on any GPU


def main() -> None:
    """Measure and report."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    deadline = time.perf_counter() + (arguments.seconds or (CUDA_SECONDS if device.type == "cuda" else math.inf))
    rows: list[dict[str, Any]] = []
    for name, checkpoint, settings in studio.subjects(device, quick=arguments.quick):
        for setting in settings:
            print(f"measuring {name} at {setting.side} px, {setting.steps} steps ...", flush=True)  # noqa: T201 - a command line tool
            now = time.perf_counter()
            rows.append(
                {"checkpoint": name, **Bench(checkpoint, setting, until=now + setting.share * (deadline - now)).run()}
            )
    result = report.summary(rows, device)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(report.table(result))  # noqa: T201
    print(f"\nwritten to {OUT}")  # noqa: T201
    sys.stdout.flush()
    # Something may still be being compiled, in threads that an ordinary exit would crash in.
    os._exit(os.EX_OK)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="fewer repeats and sizes")
    parser.add_argument(
        "--seconds", type=float, default=0.0, help=f"how long; {CUDA_SECONDS:.0f} on a GPU, else no limit"
    )
    parser.add_argument("--threads", type=int, default=0, help="torch threads on a CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
