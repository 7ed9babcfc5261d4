"""Where images are saved and under which names: the job's id and the index, never anything a prompt says.

A file appears whole or not at all, and only after its checksum has been found right.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from api.cli.client import ClientError, FarmClient, JobBody
from api.cli.output import Failure


@dataclass(frozen=True, slots=True)
class SavedPicture:
    """An image on disk."""

    path: Path
    seed: int


@dataclass(frozen=True, slots=True)
class Folder:
    """Where images go. `single` names the file where only one is expected."""

    path: Path
    single: str | None = None

    @classmethod
    def at(cls, output: Path, *, num_images: int) -> "Folder":
        """Make the place that `-o` names, before anything is rendered for it."""
        single = output.name if output.suffix.lower() == ".png" and not output.is_dir() else None
        if single and num_images > 1:
            raise Failure(f"{output} is one file, but {num_images} images were asked for; name a folder")
        folder = output.parent if single else output
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"images cannot be saved in {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Failure(f"images cannot be saved in {folder}: it is not writable")
        return cls(folder, single)

    def place(self, job_id: str, index: int) -> Path:
        """Name the file of one image."""
        return self.path / (self.single or f"{job_id}-{index}.png")


def save_images(client: FarmClient, job: JobBody, folder: Folder) -> Iterator[SavedPicture]:
    """Fetch and save every image of a job that succeeded."""
    for image in job["images"]:
        data = client.image(image["url"])
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise ClientError("bad_image", f"Image {image['index']} of job {job['id']} arrived damaged.")
        path = folder.place(job["id"], int(image["index"]))
        write(path, data)
        yield SavedPicture(path, int(image["seed"]))


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises `Failure`."""
    fresh = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
