"""`farm demo`: one picture through the whole farm, from nothing to a PNG, leaving no process behind."""

import time
from pathlib import Path
from typing import Annotated

import typer

from api.cli.client import FarmClient
from api.cli.output import say
from api.cli.pictures import Folder, SavedPicture
from api.cli.polling import interruptible
from api.cli.render import RenderRun
from api.cli.up import DEMO_PARAMS, embedded_farm

_HOST, _PORT = "127.0.0.1", 8000


def demo(
    data_dir: Annotated[Path, typer.Option(help="Where the farm keeps its data and the picture goes.")] = Path(".farm"),
) -> None:
    """Start a farm, render a picture through its API, say where it is, and stop the farm."""
    with embedded_farm(host=_HOST, port=_free_port(), data_dir=data_dir) as farm:
        code = _picture(farm.url, data_dir / "pictures")
    if code:
        raise typer.Exit(code)


def _picture(url: str, folder: Path) -> int:
    began = time.monotonic()

    def saved(picture: SavedPicture) -> None:
        say(f"{picture.path} seed={picture.seed} took={time.monotonic() - began:.1f}s")

    with FarmClient(url) as client, interruptible() as interrupted:
        place = Folder.at(folder, num_images=1)
        return RenderRun(client, place, interrupted, saved).run([DEMO_PARAMS])


def _free_port() -> int:
    """Return the usual port, or 0 where it is taken: the demo gives way to whoever was there first."""
    from deploy.standalone import ports

    return _PORT if ports.is_free(_HOST, _PORT) else 0
