"""`python -m tests.chaos`: injects faults into every part of a farm while clients use it, and proves that no job is lost.

Writes `.farm/chaos/report.json` and prints a table; exits with 1 if a guarantee was violated. Loopback only, bounded load.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from tests.chaos import report, suite
from tests.chaos.farm import Shape
from tests.chaos.nemesis import Strength
from tests.chaos.suite import Trial

FOLDER = Path(".farm/chaos")


def main() -> int:
    """Run and report."""
    arguments = _arguments()
    lease_s = arguments.lease
    trial = Trial(
        seed=arguments.seed,
        jobs=arguments.jobs,
        faults=arguments.faults,
        minutes=arguments.minutes,
        shape=Shape(
            workers=arguments.workers,
            slots=arguments.slots,
            step_s=arguments.step_ms / 1000,
            settings={
                "FARM_LEASE_SECONDS": str(lease_s),
                "FARM_HEARTBEAT_SECONDS": str(lease_s / 4),
                "FARM_DRAIN_SECONDS": str(arguments.drain),
            },
        ),
        strength=Strength(zombie_s=lease_s + 6, outage_s=arguments.outage),
        poison=arguments.poison,
        lease_s=lease_s,
    )
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    verdict = suite.run(trial, FOLDER, lambda line: print(line, flush=True))  # noqa: T201 - a command line tool
    (FOLDER / "report.json").write_text(json.dumps(verdict.figures, indent=2) + "\n")
    print(report.table(verdict.figures))  # noqa: T201
    print(f"\nwritten to {FOLDER / 'report.json'}")  # noqa: T201
    return 1 if verdict.violations else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=14.0, help="how long clients submit")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--slots", type=int, default=8, help="jobs that a worker runs at once")
    parser.add_argument("--lease", type=float, default=20.0, help="seconds; 20 is the farm's default")
    parser.add_argument("--drain", type=float, default=1.0, help="seconds of grace for what a drained worker runs")
    parser.add_argument("--outage", type=float, default=6.0, help="seconds that a broken dependency stays broken")
    parser.add_argument("--step-ms", type=float, default=20.0, help="milliseconds a denoising step takes")
    parser.add_argument("--poison", type=int, default=0, help="jobs per client that kill every worker that runs them")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
