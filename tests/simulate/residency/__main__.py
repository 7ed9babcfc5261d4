"""`python -m tests.simulate.residency`: the same clients, several policies. `--part 0.1` plays a tenth of it.

Writes `.farm/simulate/residency.json` and `residency.svg`; with `--docs` the picture of the page of figures, too. Exits with 1 if
a job ended twice.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

from tests.simulate.residency import report
from tests.simulate.residency.figures import figures, shares, visitors
from tests.simulate.residency.play import Play, Ran
from tests.simulate.residency.policies import Homes, LookAhead, Policy, Pressure
from tests.simulate.residency.scene import FULL_SPEED, Scene, Tenant, tenants_of

FOLDER = Path(".farm/simulate")
PICTURE = Path("docs/pictures/residency.svg")
WORKERS, VRAM_S = 20, 0.003


def main() -> int:
    """Run and report."""
    arguments = _arguments()
    with ProcessPoolExecutor(arguments.processes) as pool:
        played = list(pool.map(play, *zip(*plays(arguments.part), strict=True), repeat(arguments.seed)))
    rows = [row for row, _ in played]
    fair = played[-1][1]
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"arguments": vars(arguments), "rows": rows, "flood": fair}, indent=2) + "\n"
    (FOLDER / "residency.json").write_text(text)
    for path in (FOLDER / "residency.svg", *([PICTURE] if arguments.docs else [])):
        path.write_text(report.plot(rows))
    print(report.markdown(rows) if arguments.docs else report.table(rows))  # noqa: T201 - a command line tool
    print(json.dumps(fair, indent=2))  # noqa: T201
    return int(any(row["ended_twice"] for row in rows))


def play(scene: Scene, policy: Policy, seed: int) -> tuple[dict[str, Any], dict[str, object]]:
    """Play a scene; return its figures, and what it did to shares and visitors."""
    ran = Play(scene, policy, seed).run()
    return figures(ran), fairness(ran)


def plays(part: float) -> Sequence[tuple[Scene, Policy]]:
    """Return what is played: each load with every policy, then a bad day and a flood with the farm's own."""
    others: Sequence[Policy] = (LookAhead(1), LookAhead(32), Pressure())
    return [
        *((load(share, part), policy) for share in (0.3, 0.6) for policy in (Homes(), *others)),
        *((load(share, part, near_s=VRAM_S), Homes()) for share in (0.3, 0.6)),
        (bad_day(part), Homes()),
        (flood(part), Homes()),
    ]


def load(share: float, part: float = 1.0, *, near_s: float = 0.15) -> Scene:
    """Return a steady load of twelve tenants, as a share of what full calls without a swap would render."""
    near = "VRAM" if near_s == VRAM_S else "RAM"
    tenants = tenants_of(share * WORKERS * FULL_SPEED)
    return Scene(f"{share:.0%}, {near}", tenants, 30.0 + 90.0 * part, near_s=near_s, workers=WORKERS)


def bad_day(part: float = 1.0) -> Scene:
    """Return a load of 30 % in which workers die and what is wanted changes every twenty seconds."""
    length_s = 30.0 + 150.0 * part
    deaths_s = [length_s * at for at in (0.3, 0.4, 0.5)]
    return Scene("30%, deaths", tenants_of(60.0), length_s, workers=WORKERS, turn_s=20.0, deaths_s=deaths_s)


def flood(part: float = 1.0) -> Scene:
    """Return more than can be rendered: of a tenant that names a hundred checkpoints, one that names one, and a visitor."""
    tenants = [
        Tenant("hundred", 90.0, 1.0, 100, 0, is_even=True),
        Tenant("one", 72.0, 1.0, 1, 5),
        Tenant("ten", 120.0, 2.0, 10, 20, is_even=True),
        Tenant("visitor", 0.5),
    ]
    return Scene("flood, RAM", tenants, 60.0 + 140.0 * part, workers=WORKERS, warm_up_s=60.0)


def fairness(ran: Ran) -> dict[str, object]:
    """Return what a flood did to shares and visitors."""
    waits = sorted(visitors(ran)) or [0.0]
    return {
        "shares": shares(ran),
        "visitor_p95_s": round(waits[int(0.95 * (len(waits) - 1))], 2),
        "visitor_max_s": round(waits[-1], 2),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", type=float, default=1.0, help="of the time that is played")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--docs", action="store_true", help="write the picture of docs/figures.md and print its table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
