"""`farm jobs`, `farm job` and `farm cancel`: list, show and cancel jobs."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from api.cli.client import ClientError, Front, JobBody
from api.cli.output import complain, say, shortened, table
from api.cli.progress_bars import steps
from shared.vocabulary.states import JobState


def list_jobs(
    context: typer.Context,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Only jobs for this checkpoint.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The most jobs to list, newest first.")] = 20,
) -> None:
    """List jobs, newest first."""
    front: Front = context.obj
    with front.connect() as client:
        listed = client.jobs(limit=limit, state=state, checkpoint=checkpoint)
    now = datetime.now(UTC)
    headers = ("JOB", "STATE", "STEPS", "AGE", "SIZE", "CHECKPOINT", "PROMPT")
    table(headers, [_row(job, now) for job in listed])


def show_job(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the API's answer as JSON.")] = False,
) -> None:
    """Show everything about one job."""
    front: Front = context.obj
    with front.connect() as client:
        job = client.job(job_id)
    if as_json:
        # Escaped: what others wrote into a prompt must not reach the terminal as it is.
        for line in json.dumps(job, indent=2).splitlines():
            say(line)
        return
    for name, value in _facts(job):
        say(f"{name:<16} {value}")


def cancel_jobs(context: typer.Context, job_ids: Annotated[list[str], typer.Argument(metavar="ID...")]) -> None:
    """Cancel queued or running jobs."""
    front: Front = context.obj
    with front.connect() as client:
        for_each_job(job_ids, lambda job_id: f"{client.cancel(job_id)['id']} canceled")


def for_each_job(job_ids: Sequence[str], call: Callable[[str], str]) -> None:
    """Call the API for each job and print the line it returns. A job that fails does not stop the others; then exit code 1."""
    failed = False
    for job_id in job_ids:
        try:
            say(call(job_id))
        except ClientError as error:
            failed = True
            complain(f"{shortened(job_id, 40)}: {error}")
    if failed:
        raise typer.Exit(1)


def _row(job: JobBody, now: datetime) -> tuple[str, ...]:
    done, total = steps(job)
    params = job.get("params", {})
    return (
        job["id"],
        job["state"],
        f"{done}/{total}",
        age(job.get("timings", {}).get("created_at"), now),
        f"{params.get('width')}x{params.get('height')}",
        shortened(str(params.get("checkpoint")), 40),
        shortened(str(params.get("prompt")), 60),
    )


def _facts(job: JobBody) -> list[tuple[str, Any]]:
    done, total = steps(job)
    facts: list[tuple[str, Any]] = [
        ("id", job["id"]),
        ("state", job["state"]),
        ("steps", f"{done}/{total}"),
        ("attempt", f"{job.get('attempt')} of {job.get('max_attempts')}"),
        ("worker", job.get("worker")),
        *job.get("timings", {}).items(),
        *job.get("params", {}).items(),
        *((f"image {image['index']}", f"seed={image['seed']} {image['url']}") for image in job.get("images", [])),
    ]
    if error := job.get("error"):
        facts.append(("error", f"{error.get('message')} [{error.get('code')}]"))
    return [(name, value) for name, value in facts if value is not None]


def age(created_at: str | None, now: datetime) -> str:
    """Format the age of an API timestamp; '?' for a malformed one."""
    try:
        seconds = int((now - datetime.fromisoformat(created_at or "")).total_seconds())
    except (ValueError, TypeError):
        return "?"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{max(seconds, 0)} s"
