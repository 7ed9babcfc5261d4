"""From the farm's answers to the types that a program works with."""

from typing import Any

from pydantic import ValidationError

from api.client.problems import ClientError
from shared.wire import Job


def as_job(body: dict[str, Any]) -> Job:
    """Read a job. Fields that this client does not know are left out."""
    try:
        return Job.model_validate(body)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ClientError(
            "bad_response", f"This client cannot read the job's {where}; is it older than the farm?"
        ) from error


def image_url(job: Job, index: int) -> str:
    """Return where an image of a job is. Raises `ClientError` for one that is not there."""
    for image in job.images:
        if image.index == index:
            return image.url
    raise ClientError("image_not_found", f"Job {job.id} is {job.state} and has no image {index}.")
