"""`farm up`: run the embedded farm (`deploy.standalone`) until it is stopped."""

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.client import DEFAULT_URL
from api.cli.output import Failure, note, say

if TYPE_CHECKING:
    from deploy.standalone.farm import EmbeddedFarm

DEMO_PROMPT = "a red circle on a blue background"
DEMO_PARAMS: dict[str, Any] = {"prompt": DEMO_PROMPT, "width": 256, "height": 256, "steps": 20, "guidance_scale": 7.0}


class Device(StrEnum):
    """Device of the gpu workers."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    data_dir: Annotated[Path, typer.Option(help="Folder for jobs and images.")] = Path(".farm"),
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="Stable Diffusion 1.5 checkpoints to serve: a folder of them, or files, diffusers folders and names of"
            " checkpoints in the bucket (repeat it). By default all in the bucket, or a demo if it has none."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Number of gpu workers; by default one for each GPU.")
    ] = None,
    device: Annotated[Device | None, typer.Option(help="auto uses the GPU if there is one.")] = None,
) -> None:
    """Run a whole farm on this machine until Ctrl-C. Postgres, Redis and S3 run embedded unless FARM_* names a server."""
    farm = embedded_farm(
        host=host, port=port, data_dir=data_dir, checkpoints=checkpoint or (), workers=workers, device=device
    )
    with farm:
        for line in _welcome(farm.url, farm.public_url, data_dir if farm.asks_for_keys else None):
            say(line)
        farm.wait()


def embedded_farm(**options: Any) -> "EmbeddedFarm":
    """Return an embedded farm, not started yet. It reports its progress on stderr."""
    # Only here: most commands need no engines, and an api machine may not have them.
    try:
        from deploy.standalone.farm import EmbeddedFarm, UpOptions
    except ImportError as error:
        raise Failure(f'the embedded farm is not installed ({error}); pip install -e ".[standalone]"') from error
    return EmbeddedFarm(UpOptions(**options), on_progress=_note_lines)


def _note_lines(lines: str) -> None:
    for line in lines.splitlines():
        note(line)


def _welcome(url: str, public_url: str, keys_in: Path | None = None) -> list[str]:
    body = json.dumps({"prompt": DEMO_PROMPT, "width": 256, "height": 256})
    farm = "farm" if url == DEFAULT_URL else f"farm --url {url}"
    create = "farm keys create NAME" + ("" if keys_in == Path(".farm") else f" --data-dir {shlex.quote(str(keys_in))}")
    keys = [f"It needs API keys. Create one: {create}; then set FARM_API_KEY=farm_…"] if keys_in else []
    bearer = """ -H "Authorization: Bearer $FARM_API_KEY\"""" if keys_in else ""
    return [
        f"The farm is ready: {url} (API documentation at {url}/docs)",
        *([f"Other machines reach it at {public_url}"] if public_url != url else []),
        *keys,
        f"  curl -sS {url}/v1/jobs{bearer} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        f'  {farm} render "{DEMO_PROMPT}" --size 256',
        "Press Ctrl-C to stop it.",
    ]
