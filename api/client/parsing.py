"""From the farm's answers to the types that a program works with."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from api.client import problems
from api.client.problems import ClientError
from shared.jobs.wire import Batch, Job

T = TypeVar("T", bound=BaseModel)


def as_job(body: dict[str, Any]) -> Job:
    """Read a job. Fields that this client does not know are left out."""
    return _read(Job, body, "job")


def as_batch(body: dict[str, Any]) -> Batch:
    """Read a batch. Fields that this client does not know are left out."""
    return _read(Batch, body, "batch")


def image_url(job: Job, index: int) -> str:
    """Return where an image of a job is. Raises `ClientError` for one that is not there."""
    for image in job.images:
        if image.index == index:
            return image.url
    raise ClientError("image_not_found", f"Job {job.id} is {job.state} and has no image {index}.")


def _read(kind: type[T], body: dict[str, Any], word: str) -> T:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise problems.unreadable(error, word) from error
