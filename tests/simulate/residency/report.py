"""Report: a printed table, and a plot of the waits."""

from collections.abc import Sequence
from typing import Any

from tests.simulate import report

WIDTH, ROW, LEFT, RIGHT = 860, 22, 250, 90
COLOUR, OURS = "#9ca3af", "#1d4ed8"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay the figures of each scene and policy side by side."""
    return report.table([{"fleet": f"{row['scene']}: {row['policy']}", **row} for row in rows])


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table for a page."""
    lines = [
        "| load, weights in | policy | wait p50 / p95 / max, s | rendered | swaps per 1,000 | in swaps | disk loads | a call |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['scene']} | {row['policy']} | {row['wait_p50_s']} / {row['wait_p95_s']} / {row['wait_max_s']} "
        f"| {round(100 * row['rendered_of_asked'])} % | {row['swaps_per_1000']} | {row['swap_percent']} % "
        f"| {row['disk_loads']} | {row['images_a_call']} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """Draw the p95 of the waits as bars, as SVG; the scale is logarithmic in spirit: a square root."""
    most = max(float(row["wait_p95_s"]) for row in rows) or 1.0
    bars = "".join(_bar(row, place, most) for place, row in enumerate(rows))
    height = ROW * len(rows) + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
        f'<text x="10" y="20" font-weight="bold">Wait in seconds, p95 (bars in proportion to the square root)</text>'
        f"{bars}</svg>\n"
    )


def _bar(row: dict[str, Any], place: int, most: float) -> str:
    top, wait_s = 34 + ROW * place, float(row["wait_p95_s"])
    length = (WIDTH - LEFT - RIGHT) * (wait_s / most) ** 0.5
    colour = OURS if row["policy"] == "homes" else COLOUR
    return (
        f'<text x="10" y="{top + 14}">{row["scene"]}: {row["policy"]}</text>'
        f'<rect x="{LEFT}" y="{top + 3}" width="{max(1.0, length):.1f}" height="{ROW - 8}" fill="{colour}"/>'
        f'<text x="{LEFT + length + 6:.1f}" y="{top + 14}">{wait_s:g}</text>'
    )
