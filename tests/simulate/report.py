"""Report of a simulated day: a printed table, JSON, a plot."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.simulate.farm import Outcome

WIDTH, HEIGHT, LEFT, TOP, ROW = 960, 220, 60, 30, 250
COLOURS = {"queued": "#c2410c", "machines": "#1d4ed8"}


def figures(outcome: Outcome) -> dict[str, Any]:
    """Sum up one day. Waits are in seconds, machine times in hours."""
    waits = np.array([job.wait_s for job in outcome.jobs])
    foretold = [(job.foretold_s, job.wait_s) for job in outcome.jobs if job.foretold_s is not None]
    errors = [abs(said - was) for said, was in foretold] or [0.0]
    p50, p95, p99 = np.percentile(waits, (50, 95, 99))
    return {
        "fleet": outcome.plan.name,
        "jobs": len(outcome.jobs),
        "lost_jobs": outcome.lost,
        "wait_p50_s": round(float(p50), 1),
        "wait_p95_s": round(float(p95), 1),
        "wait_p99_s": round(float(p99), 1),
        "forecast_error_median_s": round(float(np.median(errors)), 1),
        "machines_most": outcome.most,
        "gpu_hours": round(outcome.paid_s / 3600, 1),
        "idle_gpu_hours": round((outcome.paid_s - outcome.busy_s) / 3600, 1),
        "repeated_gpu_hours": round(outcome.repeated_s / 3600, 2),
        "interruptions": outcome.interruptions,
    }


def table(days: Sequence[dict[str, Any]]) -> str:
    """Lay the figures of several fleets side by side."""
    lines = [["", *(str(day["fleet"]) for day in days)]]
    lines += [[name.replace("_", " "), *(str(day[name]) for day in days)] for name in days[0] if name != "fleet"]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def plot(outcomes: Sequence[Outcome]) -> str:
    """Draw queue and machines of each fleet over the day, as SVG."""
    panels = "".join(_panel(outcome, row) for row, outcome in enumerate(outcomes))
    height = ROW * len(outcomes) + TOP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>{panels}</svg>\n'
    )


def _panel(outcome: Outcome, row: int) -> str:
    series = {
        "queued": [(at_s, queued) for at_s, queued, _ in outcome.history],
        "machines": [(at_s, machines) for at_s, _, machines in outcome.history],
    }
    end_s = max((at_s for at_s, *_ in outcome.history), default=1.0)
    lines = "".join(_line(name, points, end_s, row) for name, points in series.items())
    return f'<text x="{LEFT}" y="{ROW * row + TOP - 10}" font-weight="bold">{outcome.plan.name}</text>{lines}'


def _line(name: str, points: Sequence[tuple[float, int]], end_s: float, row: int) -> str:
    """Each line has a scale of its own, named by its highest value."""
    top, most = ROW * row + TOP, max((value for _, value in points), default=0) or 1
    path = " ".join(
        f"{LEFT + at_s / end_s * (WIDTH - 2 * LEFT):.1f},{top + (HEIGHT - 30) * (1 - value / most):.1f}"
        for at_s, value in points
    )
    label_x = 4 if name == "machines" else WIDTH - LEFT + 4
    return (
        f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}"/>'
        f'<text x="{label_x}" y="{top + 4}" fill="{COLOURS[name]}">{most}</text>'
        f'<text x="{label_x}" y="{top + 18}" fill="{COLOURS[name]}">{name}</text>'
    )
