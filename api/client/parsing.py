"""Parse the API's answers into `Job` and `Batch`."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from api.client import problems
from api.client.problems import ClientError
from shared.jobs.wire import Batch, Job

T = TypeVar("T", bound=BaseModel)


def as_job(body: dict[str, Any]) -> Job:
    """Parse a job; unknown fields are dropped. Raises `ClientError`."""
    return _read(Job, body, "job")


def as_batch(body: dict[str, Any]) -> Batch:
    """Parse a batch; unknown fields are dropped. Raises `ClientError`."""
    return _read(Batch, body, "batch")


def image_url(job: Job, index: int) -> str:
    """Return the URL path of an image. Raises `ClientError` if the job does not have it."""
    for image in job.images:
        if image.index == index:
            return image.url
    raise ClientError("image_not_found", f"Job {job.id} is {job.state} and has no image {index}.")


def _read(kind: type[T], body: dict[str, Any], word: str) -> T:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise problems.unreadable(error, word) from error
