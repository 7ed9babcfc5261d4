"""Errors of the A1111 routes, with the statuses and texts that its clients check."""

from shared.errors import FarmError, InvalidRequest, NotFound


class SamplerNotFound(InvalidRequest):
    """Sampler not found"""  # noqa: D400, D415 - clients compare the text

    status = 400
    code = "sampler_not_found"


class ScriptNotFound(InvalidRequest):
    """No such script."""

    code = "script_not_found"


class InitImageMissing(NotFound):
    """Init image not found"""  # noqa: D400, D415 - clients compare the text

    code = "init_image_missing"


class NothingFound(NotFound):
    """The farm has nothing of this name."""

    code = "nothing_found"


class Impossible(FarmError):
    """A1111 fails here with a RuntimeError and status 500: unknown checkpoints and upscalers, too many images."""

    code = "impossible"


class TooLate(FarmError):
    """The job takes longer than the api holds a request open; the job goes on."""

    status = 504
    code = "too_late"
    retryable = True
