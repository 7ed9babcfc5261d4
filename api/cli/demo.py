"""`farm demo`: start an embedded farm, render one image through its API, and stop the farm."""

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
    data_dir: Annotated[Path, typer.Option(help="Folder for the farm's data and the image.")] = Path(".farm"),
) -> None:
    """Start a farm, render one image through its API, print its path, and stop the farm."""
    from deploy.standalone import serving

    # By its path: whatever is in the bucket, or named for other farms, is not what the demo's prompt is for.
    with embedded_farm(host=_HOST, port=_free_port(), data_dir=data_dir, checkpoints=[serving.DEMO]) as farm:
        code = _render(farm.url, data_dir / "pictures")
    if code:
        raise typer.Exit(code)


def _render(url: str, folder: Path) -> int:
    began = time.monotonic()

    def saved(picture: SavedPicture) -> None:
        say(f"{picture.path} seed={picture.seed} took={time.monotonic() - began:.1f}s")

    with FarmClient(url) as client, interruptible() as interrupted:
        place = Folder.at(folder, num_images=1)
        return RenderRun(client, place, interrupted, saved).run([DEMO_PARAMS])


def _free_port() -> int:
    """Return the default port, or 0 (any free one) if it is in use."""
    from deploy.standalone import ports

    return _PORT if ports.is_free(_HOST, _PORT) else 0
