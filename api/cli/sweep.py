"""`farm sweep`: one prompt, some parameters that vary, and a contact sheet of what comes of it.

What was submitted here is withdrawn here: Ctrl-C cancels all that is not finished yet.
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
LOOK_S = 0.5


def sweep(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="The same for all, unless it varies.")],
    vary: Annotated[
        list[str], typer.Option("--vary", metavar="NAME=A,B,…", help="A parameter and its values: steps=10,20.")
    ],
    fixed: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other parameter of a job.")
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--zip", help="First values together, then second ones, instead of every combination.")
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for the images and the sheet.")] = Path(),
) -> None:
    """Render every combination of some parameters, and save the images with a contact sheet."""
    template = {"prompt": checked_text(prompt), **dict(_named(one, _value) for one in fixed or [])}
    axes = dict(_named(one, _values) for one in vary)
    wanted = {"name": prompt[:200], "template": template, "zip" if side_by_side else "grid": axes}
    folder = Folder.at(output, num_images=2)
    front: Front = context.obj
    with front.connect() as client, interruptible() as interrupted:
        batch = client.submit_batch(wanted)
        if not _finished(client, batch, interrupted):
            client.cancel_batch(batch["id"])
            note(f"canceled batch {batch['id']}")
            raise typer.Exit(130)
        failed = _saved(client, batch["id"], folder, list(axes))
    if failed:
        raise typer.Exit(1)


def _finished(client: FarmClient, batch: dict[str, Any], interrupted: Interrupted) -> bool:
    """Show the whole until all has ended. False when the user asked to stop before."""
    with bars() as show:
        while batch["state"] != "finished" and not interrupted.is_set():
            _tell(batch, show)
            interrupted.wait(LOOK_S)
            batch = client.batch(batch["id"])
        _tell(batch, show)
    return bool(batch["state"] == "finished")


def _tell(batch: dict[str, Any], show: Show) -> None:
    ended = batch["total"] - batch["counts"]["queued"] - batch["counts"]["running"]
    show({**batch, "state": f"{ended} of {batch['total']}", "params": {"prompt": batch["name"]}})


def _saved(client: FarmClient, batch_id: str, folder: Folder, names: Sequence[str]) -> bool:
    """Save what there is, and say of each image what it was made with. Returns whether a job has none."""
    failed = False
    for job in client.batch_jobs(batch_id):
        cell = " ".join(f"{name}={_looked_up(job, name)}" for name in names)
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


def _looked_up(job: JobBody, name: str) -> Any:
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
    """Read values between commas, or a JSON list where a value itself has one."""
    if text.startswith("["):
        listed = _value(text)
        if not isinstance(listed, list):
            raise Failure(f"{text!r} is not a JSON list")
        return listed
    return [_value(one) for one in text.split(",")]


def _value(text: str) -> Any:
    """Read JSON where it is JSON, and else plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return checked_text(text)
