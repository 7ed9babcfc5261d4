"""All errors of the farm, each with its HTTP status, stable code and retry rule. Clients see them as problem JSON.

FarmError
├── InvalidRequest 422      the request says something impossible
│   ├── UnknownCheckpoint
│   ├── RefusedCheckpoint   every worker that has it refuses it
│   ├── UnknownWeights      no LoRA, embedding or VAE of that name
│   ├── BadPicture          an init image or mask that cannot be read
│   ├── BlockedUrl          a URL that the farm must not call (SSRF)
│   ├── UrlUnreachable      a URL that could not be fetched
│   ├── KeyReused           an Idempotency-Key with another body
│   └── BadCursor
├── NotFound 404
│   ├── JobNotFound
│   ├── BatchNotFound
│   ├── UploadNotFound
│   ├── KeyNotFound
│   ├── ImageNotFound
│   ├── WorkerNotFound
│   ├── Gone 410            a job that was deleted
│   │   └── ImageLost       its job is there, and the storage has lost it
│   ├── EndpointNotFound    a webhook endpoint
│   └── DeliveryNotFound    a delivery of a webhook
├── Unauthenticated 401     no valid key came with the request
├── Forbidden 403           the key may not do this
│   ├── ScopeMissing
│   ├── PriorityTooHigh
│   ├── CrossOrigin         a page of another site had a browser send this
│   └── HostNotAllowed      the request is for a name that is not the farm's
├── TooMany 429             retryable: the key has reached a limit
│   ├── RateLimited
│   ├── QueueFullForKey
│   ├── TooManyStreams
│   ├── TooManyUploads
│   └── TooManyWebhookUrls
├── Conflict 409
│   ├── JobAlreadyFinal
│   ├── SubmissionInFlight  retryable: the same submission is being processed
│   ├── JobNotFinal         a job must end before it is deleted
│   ├── NothingToRetry
│   ├── TooManyEndpoints
│   ├── EndpointIsGone
│   └── ImagesNotReady
├── BadWeights 422          a weights file that cannot be loaded
│   └── BadCheckpoint       … as a whole SD1.5
├── NoDevice 500            the worker has no device to render on
├── DatabaseUnfit 500       a database, or a pooler before it, that cannot serve the farm
├── NoBucket 500            the storage has no such bucket
├── StorageRefused 500      the storage rejects the credentials
├── RenderFailed 500        the engine could not make this image
│   ├── OutOfMemory         retryable
│   ├── NotANumber
│   ├── WeightsMissing      retryable: another worker may have them
│   └── EngineStopped       retryable: the worker went away under the request
├── WorkerLost 500          retryable: the lease ran out
├── ObjectMissing 500       a picture that the storage does not have
├── WorkerUnfit 500         retryable: the worker computes wrongly, or its weights have changed
├── RunTimeout 500          the attempt took longer than its job allows
└── Unavailable 503         retryable: a dependency does not answer
    ├── DatabaseUnavailable
    ├── BrokerUnavailable
    ├── StorageUnavailable
    │   └── ObjectDamaged   it gives back something else than was stored
    ├── TooBusy             the api handles no more such requests at once
    └── QueueFull

Canceled stands apart: it is an outcome, not a failure, and never leaves the worker.
"""

from typing import ClassVar


class FarmError(Exception):
    """Something went wrong inside the farm."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    # What an operator does about it; the message is for clients.
    fix: str = ""

    def __init__(self, message: str = "", *, retry_after_s: float | None = None, fix: str = "") -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        self.retry_after_s = retry_after_s
        self.fix = fix or self.fix

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields for a log line: code, error, the first line of its cause, and fix, without empty ones."""
        cause = str(self.__cause__ or "").strip().split("\n", maxsplit=1)[0]
        facts = {
            "code": self.code,
            "error": str(self),
            "cause": cause if cause not in str(self) else "",
            "fix": self.fix,
        }
        return {name: said for name, said in facts.items() if said}


class InvalidRequest(FarmError):
    """The request is not valid."""

    status = 422
    code = "invalid_request"


class UnknownCheckpoint(InvalidRequest):
    """The farm has no checkpoint of that name."""

    code = "unknown_checkpoint"


class RefusedCheckpoint(InvalidRequest):
    """No worker can load this checkpoint."""

    code = "checkpoint_refused"


class UnknownWeights(InvalidRequest):
    """The farm has no LoRA, embedding or VAE of that name."""

    code = "unknown_weights"


class BadPicture(InvalidRequest):
    """The picture cannot be read."""

    code = "bad_picture"


class BlockedUrl(InvalidRequest):
    """The farm does not call this URL."""

    code = "url_blocked"


class UrlUnreachable(InvalidRequest):
    """The URL could not be fetched."""

    code = "url_unreachable"


class BadCursor(InvalidRequest):
    """The cursor is not valid for this list."""

    code = "bad_cursor"


class KeyReused(InvalidRequest):
    """The Idempotency-Key was already used with a different request body."""

    code = "idempotency_key_reused"


class NotFound(FarmError):
    """There is nothing here."""

    status = 404
    code = "not_found"


class JobNotFound(NotFound):
    """There is no job with this id."""

    code = "job_not_found"


class BatchNotFound(NotFound):
    """There is no batch with this id."""

    code = "batch_not_found"


class UploadNotFound(NotFound):
    """There is no upload with this id, or it has expired."""

    code = "upload_not_found"


class KeyNotFound(NotFound):
    """There is no API key with this id."""

    code = "key_not_found"


class ImageNotFound(NotFound):
    """The job has no image of that index."""

    code = "image_not_found"


class Unauthenticated(FarmError):
    """An API key is required: send `Authorization: Bearer KEY`, or HTTP Basic with the key as password."""

    status = 401
    code = "unauthenticated"


class Forbidden(FarmError):
    """The API key is not allowed to do this."""

    status = 403
    code = "forbidden"


class ScopeMissing(Forbidden):
    """The API key lacks a required scope."""

    code = "scope_missing"


class PriorityTooHigh(Forbidden):
    """The API key is not allowed to submit at this priority."""

    code = "priority_too_high"


class CrossOrigin(Forbidden):
    """A page of another site may not ask this; an operator lists the sites that may in FARM_CORS_ORIGINS."""

    code = "cross_origin"


class HostNotAllowed(Forbidden):
    """The farm does not answer to this name; an operator lists its names in FARM_ALLOWED_HOSTS."""

    code = "host_not_allowed"


class TooMany(FarmError):
    """The API key has reached a limit; try again later."""

    status = 429
    code = "too_many"
    retryable = True


class RateLimited(TooMany):
    """The API key has made too many requests; try again later."""

    code = "rate_limited"


class QueueFullForKey(TooMany):
    """The API key has reached its limit of waiting jobs; try again later."""

    code = "queue_full_for_key"


class TooManyStreams(TooMany):
    """The API key has reached its limit of open event streams."""

    code = "too_many_streams"


class TooManyUploads(TooMany):
    """The API key has reached its limit of uploads."""

    code = "too_many_uploads"


class TooManyWebhookUrls(TooMany):
    """The API key's jobs name as many webhook URLs as they may."""

    code = "too_many_webhook_urls"


class EndpointNotFound(NotFound):
    """There is no webhook endpoint with this id."""

    code = "endpoint_not_found"


class DeliveryNotFound(NotFound):
    """There is no delivery with this id."""

    code = "delivery_not_found"


class WorkerNotFound(NotFound):
    """There is no worker with this id."""

    code = "worker_not_found"


class Gone(NotFound):
    """The job was deleted, on request or after the retention time."""

    status = 410
    code = "gone"


class ImageLost(Gone):
    """The job succeeded, but the storage has lost this image. A retry of the job renders it again."""

    code = "image_lost"


class Conflict(FarmError):
    """The request conflicts with the current state."""

    status = 409
    code = "conflict"


class SubmissionInFlight(Conflict):
    """The same submission is still being processed; try again soon."""

    code = "submission_in_flight"
    retryable = True


class JobNotFinal(Conflict):
    """The job has not ended yet."""

    code = "job_not_final"


class NothingToRetry(Conflict):
    """The job has not failed."""

    code = "nothing_to_retry"


class JobAlreadyFinal(Conflict):
    """The job has already ended."""

    code = "job_already_final"


class TooManyEndpoints(Conflict):
    """The limit of webhook endpoints is reached."""

    code = "too_many_endpoints"


class EndpointIsGone(Conflict):
    """The webhook endpoint has answered 410 Gone; resume it first."""

    code = "endpoint_is_gone"


class ImagesNotReady(Conflict):
    """The job has no images, because it has not succeeded."""

    code = "images_not_ready"


class BadWeights(FarmError):
    """The file does not hold weights that can be loaded."""

    status = 422
    code = "bad_weights"
    fix = "check FARM_CHECKPOINT and FARM_CHECKPOINT_DIR, or download the file again"


class BadCheckpoint(BadWeights):
    """The file is not a Stable Diffusion 1.5 checkpoint that can be loaded."""

    code = "bad_checkpoint"


class NoDevice(FarmError):
    """The worker has no device to render on."""

    code = "no_device"


class DatabaseUnfit(FarmError):
    """The database cannot serve the farm."""

    code = "database_unfit"
    fix = "change it as said, or name another one in FARM_DATABASE_URL"


class NoBucket(FarmError):
    """The image storage has no such bucket."""

    code = "no_bucket"


class StorageRefused(FarmError):
    """The image storage rejects the credentials of this process."""

    code = "storage_refused"


class RenderFailed(FarmError):
    """The engine could not render the image."""

    code = "render_failed"


class OutOfMemory(RenderFailed):
    """Out of memory: this image does not fit on the worker's device."""

    code = "out_of_memory"
    retryable = True


class NotANumber(RenderFailed):
    """The image has become NaN; the checkpoint, VAE or LoRA may be damaged or unfit for half precision."""

    code = "not_a_number"


class WeightsMissing(RenderFailed):
    """The job needs weights that its worker does not have."""

    code = "weights_missing"
    retryable = True


class EngineStopped(RenderFailed):
    """The worker stopped before the image was done."""

    code = "engine_stopped"
    retryable = True


class WorkerLost(FarmError):
    """The worker that ran the job went silent and its lease ran out."""

    code = "worker_lost"
    retryable = True


class WorkerUnfit(FarmError):
    """The worker failed a self-test: it computes wrongly, or its weights have changed."""

    code = "worker_unfit"
    retryable = True
    fix = "its supervisor restarts it; if this repeats, download the checkpoint again or replace the GPU"


class RunTimeout(FarmError):
    """The job ran longer than its timeout."""

    code = "run_timeout"


class ObjectMissing(FarmError):
    """An object that the farm needs is missing from the image storage."""

    code = "object_missing"


class Unavailable(FarmError):
    """A part of the farm does not answer; try again soon."""

    status = 503
    code = "unavailable"
    retryable = True


class DatabaseUnavailable(Unavailable):
    """The database does not answer; nothing was changed. Try again soon."""

    code = "database_unavailable"
    fix = "start Postgres, or check FARM_DATABASE_URL"


class BrokerUnavailable(Unavailable):
    """Redis does not answer."""

    code = "broker_unavailable"
    fix = "start Redis, or check FARM_REDIS_URL"


class StorageUnavailable(Unavailable):
    """The image storage does not answer. Try again soon."""

    code = "storage_unavailable"
    fix = "start the object store, or check FARM_S3_*; farm doctor tests it"


class ObjectDamaged(StorageUnavailable):
    """The image storage does not give back what was stored. Try again soon."""

    code = "object_damaged"
    fix = "look at the store and at what lies between it and the farm; POST /v1/jobs/ID/retry renders a job again"


class TooBusy(Unavailable):
    """The api is handling as many of these requests as it can; try again soon."""

    code = "too_busy"


class QueueFull(Unavailable):
    """The queue of the farm is full; try again later."""

    code = "queue_full"


class Canceled(Exception):
    """The request was canceled; its work stopped at a step boundary."""
