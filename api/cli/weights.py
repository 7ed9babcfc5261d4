"""`farm loras`, `embeddings`, `vaes`: list them. For these and checkpoints `push` and `remove`: files in the farm's bucket.

A pushed file is read through twice: for its digest, which is in its key, and to send it. The store gets it in parts. A push that
a broken connection has ended goes on where it was when it is run again, and Ctrl-C leaves nothing behind.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli import checks
from api.cli.client import Front
from api.cli.output import Failure, note, say, shortened, table
from api.cli.progress_bars import meter

if TYPE_CHECKING:
    from shared.fleet.weights_bucket import BucketFile
    from shared.infra.storage import Storage

LABELS = {"checkpoint": "checkpoint", "lora": "LoRA", "embedding": "embedding", "vae": "VAE"}
READ_S = 60.0  # a part has 16 MiB, which a slow line takes long to send
_CHUNK_BYTES = 2**20

File = Annotated[Path, typer.Argument(help="A .safetensors file.")]
Name = Annotated[str, typer.Argument(help="The name by which jobs call it.")]
Called = Annotated[str | None, typer.Option("--name", help="The name for jobs to call it by, instead of the file's.")]
DataDir = Annotated[Path, typer.Option(help="Data folder of a running `farm up`; ignored if FARM_S3_* is set.")]
DEFAULT_DATA_DIR = Path(".farm")


def group(kind: str) -> typer.Typer:
    """Return the commands for LoRAs, embeddings or VAEs."""
    label = LABELS[kind]
    app = typer.Typer(rich_markup_mode=None, help=f"List the farm's {label}s, or keep them in its bucket.")

    @app.callback(invoke_without_command=True, help=f"List the {label}s that jobs may name.")
    def list_weights(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            _list(context.obj, kind)

    add_push_and_remove(app, kind)
    return app


def add_push_and_remove(app: typer.Typer, kind: str) -> None:
    """Add `push` and `remove` of a kind to a group of commands."""
    label = LABELS[kind]

    @app.command("push", help=f"Store a {label} in the farm's bucket, from which every worker takes it.")
    def push(file: File, name: Called = None, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
        _push(kind, file, name, data_dir)

    @app.command("remove", help=f"Delete a {label} from the farm's bucket.")
    def remove(name: Name, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
        _remove(kind, name, data_dir)


def _list(front: Front, kind: str) -> None:
    with front.connect() as client:
        served = client.listing(f"/v1/{kind}s", "weights")
    table((LABELS[kind].upper(), "ALIAS", "SIZE"), [_row(one) for one in served])


def _row(one: dict[str, Any]) -> tuple[str, str, str]:
    size = int(one.get("size_bytes") or 0) / 1e6
    return shortened(str(one.get("name")), 60), shortened(str(one.get("alias") or ""), 40), f"{size:.1f} MB"


def _push(kind: str, path: Path, name: str | None, data_dir: Path) -> None:
    from shared.errors import StorageUnavailable
    from shared.fleet import weights_bucket

    path = path.expanduser()
    size, config_dir = _inspected(kind, path)
    name = name or path.stem
    if complaint := weights_bucket.complaint(kind, name):
        raise Failure(f"{complaint} --name gives it another name")
    storage = _storage(data_dir)
    config, config_name = weights_bucket.packed(config_dir)
    file = weights_bucket.BucketFile(kind, name, _digest(path, size), size, datetime.now(UTC), config_name)
    there = {one.key: one for one in weights_bucket.look(storage, f"{kind}/{name}/")}
    if file.key in there and there[file.key].size_bytes == size:
        weights_bucket.remove(storage, kind, name, but=file.stem)
        note(f"{name} is already in the bucket with this SHA-256.")
    else:
        try:
            with meter("sending", size) as advance:
                weights_bucket.push(storage, file, path, config, advance)
        except StorageUnavailable as error:
            raise Failure(f"{error} What was sent is kept: push the file again to go on.") from error
        _tell(file, there)
    say(file.sha256)


def _tell(file: "BucketFile", there: dict[str, "BucketFile"]) -> None:
    label = LABELS[file.kind]
    note(f"{label} {file.name} is in the bucket; workers list it within a minute.")
    for one in there.values():
        note(f"It replaces the one of {one.modified_at:%Y-%m-%d %H:%M} with SHA-256 {one.sha256[:16]}….")


def _remove(kind: str, name: str, data_dir: Path) -> None:
    from shared.fleet import weights_bucket

    if complaint := weights_bucket.complaint(kind, name):
        raise Failure(complaint)
    if not weights_bucket.remove(_storage(data_dir), kind, name):
        raise Failure(f"the bucket has no {LABELS[kind]} named {shortened(name, 100)!r}")
    note(f"{LABELS[kind]} {name} is deleted from the bucket; workers let it go within a minute.")


def _inspected(kind: str, path: Path) -> tuple[int, Path | None]:
    """Return a file's size, and the folder of its config if it has one. Raises `BadWeights` or `Failure`."""
    from shared.files import checkpoints, weights
    from shared.files.weights import Kind

    if path.is_dir():
        raise Failure(
            f"{path} is a folder: a single .safetensors file is pushed. Convert a diffusers folder with diffusers'"
            " scripts/convert_diffusers_to_original_stable_diffusion.py --use_safetensors, or put it into FARM_CHECKPOINT_DIR"
        )
    if kind == "checkpoint":
        found = checkpoints.inspect(path)
        return found.size_bytes, found.config_dir
    return weights.inspect(Kind(kind), path).size_bytes, None


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, meter("reading", size) as advance:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _storage(data_dir: Path) -> "Storage":
    """Open the farm's bucket: that of the environment, else that of `farm up` on this machine. Raises `Failure`."""
    from deploy.standalone import s3
    from deploy.standalone.program import StartFailed
    from shared.infra.storage import Storage
    from shared.settings import load

    given: dict[str, Any] = {}
    try:
        if not checks.is_remote("S3"):
            found = s3.of_folder(data_dir.expanduser())
            given = {name.removeprefix("FARM_").lower(): value for name, value in found.items()}
        return Storage(load(**given), read_s=READ_S)
    except StartFailed as error:
        raise Failure(str(error)) from error
    except SystemExit as error:
        raise Failure(str(error).removeprefix("farm: ")) from None
