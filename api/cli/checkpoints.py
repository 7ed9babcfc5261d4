"""`farm checkpoints`: list the checkpoints of the farm, download Stable Diffusion 1.5, store files in the farm's bucket."""

from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli import hub_download, weights
from api.cli.client import Front
from api.cli.output import say, shortened, table

SD15 = hub_download.Source("stable-diffusion-v1-5/stable-diffusion-v1-5", "v1-5-pruned-emaonly.safetensors")
VAE = hub_download.Source("stabilityai/sd-vae-ft-mse-original", "vae-ft-mse-840000-ema-pruned.safetensors")

app = typer.Typer(rich_markup_mode=None, help="List the farm's checkpoints, download one, or keep them in its bucket.")
weights.add_push_and_remove(app, "checkpoint")


@app.callback(invoke_without_command=True)
def list_checkpoints(context: typer.Context) -> None:
    """List the checkpoints: how near workers have each, and why they refuse others."""
    if context.invoked_subcommand is not None:
        return
    front: Front = context.obj
    with front.connect() as client:
        served = client.checkpoints()
    rows = [
        (
            shortened(str(one.get("name")), 60),
            _state(one),
            str(one.get("ready_workers")),
            str(one.get("queued", 0)),
            f"{int(one.get('size_bytes') or 0) / 1e6:.0f} MB",
        )
        for one in served
    ]
    table(("CHECKPOINT", "STATE", "READY WORKERS", "QUEUED", "SIZE"), rows)


def _state(one: dict[str, Any]) -> str:
    if reason := one.get("refused"):
        return shortened(f"refused: {reason}", 100)
    if one.get("resident_workers"):
        return "loaded"
    if one.get("loading_workers"):
        return "is being loaded"
    price_s = one.get("price_s")
    return "no worker has it now" if price_s is None else f"loads in {price_s:.1f} s"


@app.command("pull")
def pull(
    vae: Annotated[bool, typer.Option("--vae", help="Download the ft-mse VAE instead of the checkpoint.")] = False,
    repo: Annotated[str | None, typer.Option(help="Another Hugging Face repository: OWNER/NAME.")] = None,
    file: Annotated[str | None, typer.Option(help="Another .safetensors file in the repository.")] = None,
    revision: Annotated[str, typer.Option(help="A branch, tag or commit.")] = "main",
    to: Annotated[Path, typer.Option(envvar="FARM_CHECKPOINT_DIR", help="Folder to save the file in.")] = Path(
        ".farm/checkpoints"
    ),
) -> None:
    """Download Stable Diffusion 1.5 (4.3 GB) from the Hugging Face hub. An interrupted download resumes when run again."""
    default = VAE if vae else SD15
    source = hub_download.Source(repo or default.repo, file or default.file, revision)
    # A VAE alone is no checkpoint: in a folder of its own it is not taken for one.
    path = hub_download.pull(source, to / "vae" if vae else to)
    say(str(path))
