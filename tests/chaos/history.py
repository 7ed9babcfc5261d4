"""History of a run as values: the clients' answers, every version of every row, every object, every fault. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

# Workers look through their folders, and tell of it, every five seconds; a busy machine takes longer.
NOTICED_S = 20.0


@dataclass(frozen=True, slots=True)
class Version:
    """A job's row as one statement left it. `seq` orders all of them; `at` is the database's clock, in seconds.

    `steps` are those that the attempt has done itself.
    """

    seq: int
    at: float
    job: UUID
    version: int
    state: str
    attempt: int
    faults: int
    max_attempts: int
    worker: str | None = None
    error_code: str | None = None
    error_retryable: bool | None = None
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer that a client got, or did not get: `status` None is an unknown outcome. Times are in seconds.

    `key` names a submit across its retries, `hooked` one that asks for a webhook. `order` counts within one client.
    """

    client: int
    order: int
    act: str  # submit, poll, cancel, fetch
    began: float
    ended: float
    status: int | None
    key: str | None = None
    job: UUID | None = None
    state: str | None = None
    version: int | None = None
    code: str | None = None
    retry_after: str | None = None
    sha256: str | None = None
    hooked: bool = False
    checkpoint: str | None = None  # that a submit names


@dataclass(frozen=True, slots=True)
class Shown:
    """A row of `images`: what the farm shows as a job's result."""

    job: UUID
    index: int
    key: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Painted:
    """A shown image: the marks of the weights that made it, and what its text tells of their file, the begin of the SHA-256."""

    job: UUID
    index: int
    mark: str
    told: str


@dataclass(frozen=True, slots=True)
class Laid:
    """A good file that lay under a checkpoint's name on a worker, from `began` to `ended`, in seconds."""

    checkpoint: str
    sha256: str
    mark: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Spoiled:
    """A time in which a checkpoint's file was missing or bad on some worker."""

    checkpoint: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Told:
    """An event that the farm wrote down for webhooks and the feed."""

    job: UUID
    type: str
    version: int


@dataclass(frozen=True, slots=True)
class Heard:
    """A webhook that reached its receiver at `at`, in seconds. Without a job: its signature or its body was not right.

    `accepted` is false where the receiver asked for it again.
    """

    message: str
    at: float
    accepted: bool
    sha256: str
    job: UUID | None
    type: str
    version: int
    state: str
    images: int


@dataclass(frozen=True, slots=True)
class Fault:
    """What the nemesis did. `healed` is when the cause was gone: at once for a kill. `worker` is the gpu worker that it hit."""

    kind: str
    began: float
    healed: float
    worker: str | None = None
    drain_s: float | None = None


@dataclass(frozen=True, slots=True)
class History:
    """All of a run. `images_wanted` says how many images each job asked for; `poisoned` jobs kill every worker that runs them."""

    versions: Sequence[Version]
    seen: Sequence[Seen]
    shown: Sequence[Shown]
    objects: Mapping[str, str]  # sha256 by key
    kept: frozenset[str] | None = None  # the keys that were left when all had been swept; None where nobody swept
    told: Sequence[Told] = ()
    heard: Sequence[Heard] = ()
    faults: Sequence[Fault] = ()
    images_wanted: Mapping[UUID, int] = field(default_factory=dict)
    poisoned: frozenset[UUID] = frozenset()
    checkpoints: Mapping[UUID, str] = field(default_factory=dict)  # that each job named
    painted: Sequence[Painted] = ()
    laid: Sequence[Laid] = ()
    spoiled: Sequence[Spoiled] = ()

    def by_job(self) -> dict[UUID, list[Version]]:
        """Return each job's versions, in order."""
        jobs: dict[UUID, list[Version]] = {}
        for version in sorted(self.versions, key=lambda one: one.seq):
            jobs.setdefault(version.job, []).append(version)
        return jobs

    def was_spoiled(self, checkpoint: str | None, began: float, ended: float) -> bool:
        """Whether a checkpoint's file was missing or bad on some worker in a time, or workers may still have thought so."""
        return any(
            one.checkpoint == checkpoint and one.began <= ended and began <= one.ended + NOTICED_S
            for one in self.spoiled
        )

    def hooked(self) -> set[UUID]:
        """Return the jobs whose clients were promised a webhook."""
        return {one.job for one in self.seen if one.hooked and one.job is not None}
