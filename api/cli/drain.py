"""`farm drain`: ask workers to finish and leave, or take them back."""

from typing import Annotated

import typer

from api.cli.client import Front
from api.cli.output import say


def drain(
    context: typer.Context,
    worker_ids: Annotated[list[str], typer.Argument(metavar="WORKER...", help="As `farm top` names them.")],
    resume: Annotated[bool, typer.Option("--resume", help="Let them work again instead.")] = False,
) -> None:
    """Ask workers to finish what they run and leave; started again, they stay idle until they are resumed."""
    front: Front = context.obj
    with front.connect() as client:
        for worker_id in worker_ids:
            client.drain(worker_id, resume=resume)
            say(f"{worker_id} {'works again' if resume else 'drains'}")
