"""`farm sweep`: render one prompt over a grid of parameters, and save the images and a contact sheet.

Ctrl-C cancels the unfinished jobs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.client import FarmClient, Front, JobBody
from api.cli.output import Failure, complain, note, say
from api.cli.pictures import Folder, save_images, write
from api.cli.polling import Interrupted, interruptible
from api.cli.progress_bars import Show, bars
from api.cli.render import checked_text, reason

SHEET = "sheet.webp"
POLL_S = 0.5


def sweep(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="Prompt of all jobs, unless it is swept.")],
    vary: Annotated[
        list[str], typer.Option("--vary", metavar="NAME=A,B,…", help="Parameter and its values: steps=10,20.")
    ],
    fixed: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Fixed parameter of all jobs.")
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--zip", help="Pair the values (first with first) instead of every combination.")
    ] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the images and the contact sheet.")
    ] = Path(),
) -> None:
    """Render every combination of parameter values, and save the images with a contact sheet."""
    template = {"prompt": checked_text(prompt), **dict(_named(one, _value) for one in fixed or [])}
    axes = dict(_named(one, _values) for one in vary)
    submission = {"name": prompt[:200], "template": template, "zip" if side_by_side else "grid": axes}
    folder = Folder.at(output, num_images=2)
    front: Front = context.obj
    with front.connect() as client, interruptible() as interrupted:
        batch = client.submit_batch(submission)
        if not _finished(client, batch, interrupted):
            client.cancel_batch(batch["id"])
            note(f"canceled batch {batch['id']}")
            raise typer.Exit(130)
        failed = _saved(client, batch["id"], folder, list(axes))
    if failed:
        raise typer.Exit(1)


def _finished(client: FarmClient, batch: dict[str, Any], interrupted: Interrupted) -> bool:
    """Show progress until all jobs are final. Returns False if the user interrupts first."""
    with bars() as show:
        while batch["state"] != "finished" and not interrupted.is_set():
            _show(batch, show)
            interrupted.wait(POLL_S)
            batch = client.batch(batch["id"])
        _show(batch, show)
    return bool(batch["state"] == "finished")


def _show(batch: dict[str, Any], show: Show) -> None:
    ended = batch["total"] - batch["counts"]["queued"] - batch["counts"]["running"]
    show({**batch, "state": f"{ended} of {batch['total']}", "params": {"prompt": batch["name"]}})


def _saved(client: FarmClient, batch_id: str, folder: Folder, names: Sequence[str]) -> bool:
    """Save images and contact sheet, and print the values of each image. Returns whether any job failed."""
    failed = False
    for job in client.batch_jobs(batch_id):
        cell = " ".join(f"{name}={_value_at(job, name)}" for name in names)
        if job["state"] != "succeeded":
            failed = True
            complain(f"job {job['id']} ({cell}) {reason(job)}")
            continue
        for picture in save_images(client, job, folder):
            say(f"{picture.path} seed={picture.seed} {cell}")
    sheet = folder.path / SHEET
    write(sheet, client.sheet(batch_id))
    say(str(sheet))
    return failed


def _value_at(job: JobBody, name: str) -> Any:
    value: Any = job["params"]
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _named(text: str, read: Any) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise Failure(f"{text!r} is not of the form NAME=VALUE")
    return checked_text(name), read(value)


def _values(text: str) -> list[Any]:
    """Parse comma-separated values, or a JSON list for values that contain commas."""
    if text.startswith("["):
        listed = _value(text)
        if not isinstance(listed, list):
            raise Failure(f"{text!r} is not a JSON list")
        return listed
    return [_value(one) for one in text.split(",")]


def _value(text: str) -> Any:
    """Parse JSON; anything else is plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return checked_text(text)
