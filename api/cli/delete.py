"""`farm delete`: delete finished jobs and their images."""

from typing import Annotated

import typer

from api.cli.client import Front
from api.cli.jobs import for_each_job


def delete(context: typer.Context, job_ids: Annotated[list[str], typer.Argument(metavar="ID...")]) -> None:
    """Delete finished jobs and their images, for good."""
    front: Front = context.obj
    with front.connect() as client:

        def delete_one(job_id: str) -> str:
            client.delete(job_id)
            return f"{job_id} deleted"

        for_each_job(job_ids, delete_one)
