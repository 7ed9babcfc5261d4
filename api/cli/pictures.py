"""Save images under the job's id and the image's index; nothing from a prompt becomes part of a path.

Files are written atomically, after their checksum was verified.
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
    """Target of images: a folder, or one file in it if `single` is set."""

    path: Path
    single: str | None = None

    @classmethod
    def at(cls, output: Path, *, num_images: int) -> "Folder":
        """Create the target that `-o` names. Raises `Failure`, before anything is rendered."""
        single = output.name if output.suffix.lower() == ".png" and not output.is_dir() else None
        if single and num_images > 1:
            raise Failure(f"{output} is one file, but there will be {num_images} images; pass a folder")
        folder = output.parent if single else output
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"images cannot be saved in {folder}: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Failure(f"images cannot be saved in {folder}: it is not writable")
        return cls(folder, single)

    def place(self, job_id: str, index: int) -> Path:
        """Return the path of one image."""
        return self.path / (self.single or f"{job_id}-{index}.png")


def save_images(client: FarmClient, job: JobBody, folder: Folder) -> Iterator[SavedPicture]:
    """Download and save all images of a job that succeeded."""
    for image in job["images"]:
        data = client.image(image["url"])
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise ClientError("bad_image", f"Image {image['index']} of job {job['id']} does not match its checksum.")
        path = folder.place(job["id"], int(image["index"]))
        write(path, data)
        yield SavedPicture(path, int(image["seed"]))


def write(path: Path, data: bytes) -> None:
    """Write a file atomically. Raises `Failure`."""
    fresh = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
