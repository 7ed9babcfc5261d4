"""`python -m tests.bench`: the engine against a bare diffusers pipeline, on the same device, checkpoint, sizes and steps.

Everything is a ratio of figures taken in one run, the rivals by turns, so that a busy machine slows both. Writes
`.farm/bench/engine.json` and prints a table. Asserts nothing: a timing is no test.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from tests.bench import report, studio
from tests.bench.measure import Bench

OUT = Path(".farm/bench/engine.json")


def main() -> None:
    """Measure and report."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for name, checkpoint, settings in studio.subjects(device, quick=arguments.quick):
        for setting in settings:
            print(f"measuring {name} at {setting.side} px, {setting.steps} steps ...", flush=True)  # noqa: T201 - a command line tool
            rows.append({"checkpoint": name, **Bench(checkpoint, setting).run()})
    result = report.summary(rows, device)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(report.table(result))  # noqa: T201
    print(f"\nwritten to {OUT}")  # noqa: T201


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="fewer repeats and sizes")
    parser.add_argument("--threads", type=int, default=0, help="torch threads on a CPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
