"""What the dialect refuses, with the statuses and texts that its clients look for."""

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
    """A name that the farm does not have."""

    code = "nothing_found"


class Impossible(FarmError):
    """What makes the original fail with a RuntimeError and status 500: unknown checkpoints and upscalers, too many images."""

    code = "impossible"


class TooLate(FarmError):
    """The job takes longer than the api holds a call open; it goes on."""

    status = 504
    code = "too_late"
    retryable = True
