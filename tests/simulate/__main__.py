"""`python -m tests.simulate`: one day, several fleets, the same clients.

Writes `.farm/simulate/report.json` and `.farm/simulate/day.svg`; exits with 1 if a job was lost.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from random import Random

from api.farm.scaling import Goal
from tests.simulate import report
from tests.simulate.day import Job, arrivals
from tests.simulate.farm import SPEED, Outcome, Plan, Simulation

FOLDER = Path(".farm/simulate")


def main() -> int:
    """Run and report."""
    arguments = _arguments()
    jobs = arrivals(Random(arguments.seed), hours=arguments.hours, per_second=arguments.jobs_per_second)
    outcomes = [run(plan, jobs, arguments.seed) for plan in plans(jobs, arguments)]
    days = [report.figures(outcome) for outcome in outcomes]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "report.json").write_text(json.dumps({"arguments": vars(arguments), "fleets": days}, indent=2) + "\n")
    (FOLDER / "day.svg").write_text(report.plot(outcomes))
    print(report.table(days))  # noqa: T201 - a command line tool
    print(f"{FOLDER}/report.json, {FOLDER}/day.svg")  # noqa: T201
    return int(any(day["lost_jobs"] for day in days))


def run(plan: Plan, jobs: list[Job], seed: int) -> Outcome:
    """Run a plan on its own copy of the jobs; clouds misbehave by the seed."""
    return Simulation(plan, copy.deepcopy(jobs), Random(seed)).run()


def plans(jobs: list[Job], arguments: argparse.Namespace) -> list[Plan]:
    """As many as the farm wants, and fixed fleets around what the whole work needs on the average."""
    needed = sum(job.cost for job in jobs) / SPEED / (arguments.hours * 3600)
    goal = Goal(arguments.target_wait, minimum=2, maximum=arguments.max_workers)
    sizes = sorted({max(1, round(needed * 1.2)), max(1, round(needed * 2)), arguments.max_workers})
    return [Plan("scaled", goal), *(Plan(f"fixed {size}", goal, fixed=size) for size in sizes)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--jobs-per-second", type=float, default=3.0)
    parser.add_argument("--max-workers", type=int, default=1000)
    parser.add_argument("--target-wait", type=float, default=60.0, help="seconds")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
