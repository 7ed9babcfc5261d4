"""`farm retry` and `farm delete`: what is done with jobs that have ended."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from api.cli.client import ClientError, Front
from api.cli.output import complain, say, shortened


def retry(
    context: typer.Context,
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]")] = None,
    error_code: Annotated[str | None, typer.Option(help="All that failed with this code.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that failed or expired.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many, the oldest first.")] = 500,
) -> None:
    """Render dead jobs once more, as new jobs with the same parameters and seeds."""
    if bool(job_ids) + (error_code is not None or everything) != 1:
        raise typer.BadParameter("name jobs, or --error-code CODE, or --all")
    front: Front = context.obj
    with front.connect() as client:
        if job_ids:
            _each(job_ids, lambda job_id: f"{job_id} is rendered again as {client.retry(job_id)['id']}")
            return
        wanted: dict[str, Any] = {"limit": limit}
        if error_code is not None:
            wanted["error_code"] = error_code
        made = client.retry_many(**wanted)
    for old, new in made.items():
        say(f"{old} is rendered again as {new}")
    say(f"{len(made)} retried" + ("; there may be more, ask again" if len(made) == limit else ""))


def delete(context: typer.Context, job_ids: Annotated[list[str], typer.Argument(metavar="ID...")]) -> None:
    """Delete jobs that have ended, with their images, for good."""
    front: Front = context.obj
    with front.connect() as client:

        def deleted(job_id: str) -> str:
            client.delete(job_id)
            return f"{job_id} deleted"

        _each(job_ids, deleted)


def _each(job_ids: list[str], act: Callable[[str], str]) -> None:
    """Do something with each job and say so; one that fails is told and does not keep the others from it."""
    failed = False
    for job_id in job_ids:
        try:
            say(act(job_id))
        except ClientError as error:
            failed = True
            complain(f"{shortened(job_id, 40)}: {error}")
    if failed:
        raise typer.Exit(1)
