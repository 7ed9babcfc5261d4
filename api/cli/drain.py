"""`farm drain`: drain workers, or let drained ones take jobs again."""

from typing import Annotated

import typer

from api.cli.client import Front
from api.cli.output import say


def drain(
    context: typer.Context,
    worker_ids: Annotated[list[str], typer.Argument(metavar="WORKER...", help="Worker ids, as shown by `farm top`.")],
    resume: Annotated[bool, typer.Option("--resume", help="Let drained workers take jobs again.")] = False,
) -> None:
    """Let workers finish their running jobs and exit. A worker that is restarted stays idle until it is resumed."""
    front: Front = context.obj
    with front.connect() as client:
        for worker_id in worker_ids:
            client.drain(worker_id, resume=resume)
            say(f"{worker_id} {'takes jobs again' if resume else 'is draining'}")
