"""`farm top`: live view of the queue, the workers and the newest jobs, from the API."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from api.cli.client import ClientError, FarmClient, Front, JobBody
from api.cli.jobs import age
from api.cli.output import printable, say, shortened
from api.cli.polling import Interrupted, Outage, interruptible
from api.cli.progress_bars import steps

NEWEST_JOBS = 12
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the view."""

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def top(
    context: typer.Context,
    every_s: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between refreshes.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print once, tab-separated, and exit.")] = False,
) -> None:
    """Show the queue, the workers and the newest jobs, live until Ctrl-C."""
    front: Front = context.obj
    with front.connect() as client:
        if once:
            _print(sections(client))
            return
        with interruptible() as interrupted:
            _live(client, every_s, interrupted)


def sections(client: FarmClient) -> list[Section]:
    """Fetch all tables. Without the scope admin the table of workers is empty."""
    now = datetime.now(UTC)
    queue = client.document("/v1/queue").get("checkpoints", [])
    return [
        Section(
            ("CHECKPOINT", "QUEUED", "RUNNING", "OLDEST", "LOADED", "WORKERS", "WAIT"),
            [_queue_row(one, now) for one in queue if _has_news(one)],
        ),
        Section(
            ("WORKER", "STATE", "CHECKPOINT", "WARM", "SWAPS", "JOBS", "FILL", "TICK", "GPU", "DEVICE"),
            [_worker_row(one) for one in _workers(client)],
        ),
        Section(
            ("JOB", "STATE", "STEPS", "AGE", "WORKER", "PROMPT"),
            [_job_row(one, now) for one in client.jobs(limit=NEWEST_JOBS)],
        ),
    ]


def _live(client: FarmClient, every_s: float, interrupted: Interrupted) -> None:
    outage = Outage(PATIENCE_S)
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while not interrupted.is_set():
            try:
                live.update(_drawn(sections(client)), refresh=True)
                outage.over()
            except ClientError as error:
                outage.tolerate(error)
            interrupted.wait(every_s)


def _print(shown: Sequence[Section]) -> None:
    for section in shown:
        for row in [section.headers, *section.rows]:
            say("\t".join(row))
        say("")


def _drawn(shown: Sequence[Section]) -> Group:
    tables: list[Table | Text] = []
    for section in shown:
        table = Table(*section.headers, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for row in section.rows:
            table.add_row(*(Text(printable(cell), overflow="ellipsis", no_wrap=True) for cell in row))
        tables += [table, Text()]
    return Group(*tables)


def _workers(client: FarmClient) -> list[dict[str, Any]]:
    try:
        return client.listing("/v1/workers", "workers")
    except ClientError as error:
        if error.code != "scope_missing":
            raise
        return []


def _has_news(one: dict[str, Any]) -> bool:
    """Say whether a checkpoint has jobs or is loaded; hundreds of others may lie in folders."""
    return any(one.get(name) for name in ("queued", "running", "resident_workers", "loading_workers"))


def _queue_row(one: dict[str, Any], now: datetime) -> tuple[str, ...]:
    oldest, wait = one.get("oldest_queued_at"), one.get("predicted_wait_s")
    return (
        shortened(str(one.get("checkpoint")), 40),
        str(one.get("queued")),
        str(one.get("running")),
        age(oldest, now) if oldest else "-",
        str(one.get("resident_workers")),
        f"{one.get('workers')}×{one.get('slots')}",
        "?" if wait is None else f"{wait:g} s",
    )


def _worker_row(one: dict[str, Any]) -> tuple[str, ...]:
    fill, tick, warmth = one.get("batch_fill"), one.get("tick_s"), one.get("temperature_c")
    return (
        shortened(str(one.get("id")), 40),
        _worker_state(one),
        _loaded(one),
        f"{len(one.get('warm') or [])}/{one.get('library')}",
        str(one.get("swaps")),
        f"{one.get('running')}/{one.get('slots')}",
        "-" if fill is None else f"{fill:.1f}",
        "-" if tick is None else f"{tick * 1000:.0f} ms",
        "-" if warmth is None else f"{warmth:.0f} °C",
        shortened(str(one.get("device")), 30),
    )


def _loaded(one: dict[str, Any]) -> str:
    """Say which checkpoint a worker has loaded, and which one it is loading."""
    loaded, intends = shortened(str(one.get("checkpoint")), 30), one.get("intends")
    return f"{loaded} > {shortened(str(intends), 30)}" if intends else loaded


def _worker_state(one: dict[str, Any]) -> str:
    if reason := one.get("unfit"):
        return shortened(f"unfit: {reason}", 60)
    if not one.get("is_alive"):
        return "silent"
    return "draining" if one.get("draining_at") else "working" if one.get("running") else "idle"


def _job_row(job: JobBody, now: datetime) -> tuple[str, ...]:
    done, total = steps(job)
    return (
        job["id"],
        job["state"],
        f"{done}/{total}",
        age(job.get("timings", {}).get("created_at"), now),
        shortened(str(job.get("worker") or "-"), 24),
        shortened(str(job.get("params", {}).get("prompt")), 60),
    )
