"""`farm retry`: render jobs again that failed, expired or were canceled."""

from typing import Annotated, Any

import typer

from api.cli.client import Front
from api.cli.jobs import for_each_job
from api.cli.output import say


def retry(
    context: typer.Context,
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]")] = None,
    error_code: Annotated[str | None, typer.Option(help="Retry all jobs that failed with this code.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Retry all failed and expired jobs.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="The most jobs to retry, the oldest first.")] = 500,
) -> None:
    """Retry failed, expired or canceled jobs, as new jobs with the same parameters and seeds."""
    if bool(job_ids) + (error_code is not None or everything) != 1:
        raise typer.BadParameter("pass job ids, or --error-code CODE, or --all")
    front: Front = context.obj
    with front.connect() as client:
        if job_ids:
            for_each_job(job_ids, lambda job_id: f"{job_id} is retried as {client.retry(job_id)['id']}")
            return
        filters: dict[str, Any] = {"limit": limit}
        if error_code is not None:
            filters["error_code"] = error_code
        retried = client.retry_many(**filters)
    for old, new in retried.items():
        say(f"{old} is retried as {new}")
    say(f"{len(retried)} retried" + ("; there may be more: run this again" if len(retried) == limit else ""))
