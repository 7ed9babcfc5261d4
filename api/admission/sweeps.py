"""Batch submissions: a list of jobs, or a parameter sweep over a template. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)

from api.admission.resolution import drawn_seed
from api.admission.submissions import Submission
from shared.infra.url_guard import MAX_URL_CHARS
from shared.vocabulary.params import reject_nul

MAX_JOBS = 1000
MAX_AXES = 8
MAX_NAME_CHARS = 200

Values = Annotated[list[JsonValue], Field(min_length=1, max_length=MAX_JOBS)]
Axes: TypeAlias = Annotated[
    dict[Annotated[str, Field(max_length=100)], Values], Field(min_length=1, max_length=MAX_AXES)
]


class BatchWebhook(BaseModel):
    """A webhook (Standard Webhooks) that receives `batch.finished`."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(strict=True, min_length=1, max_length=MAX_URL_CHARS, description="http or https.")]
    secret: Annotated[
        SecretStr | None, Field(max_length=200, description="Null uses the secret of /v1/webhooks/secret.")
    ] = None


class BatchSubmission(BaseModel):
    """Up to 1,000 jobs: `jobs`, or a `template` with a `grid` (every combination) or a `zip` (first with first, and so on)."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "how many steps are enough",
                    "template": {"prompt": "a red circle on a blue background", "width": 256, "height": 256},
                    "grid": {"guidance_scale": [5.0, 9.0], "steps": [10, 20]},
                },
                {"jobs": [{"prompt": "a red circle"}, {"prompt": "a green square", "seed": 42}]},
            ]
        },
    )

    # A short body may be a sweep of a thousand jobs.
    EXPANDS: ClassVar[bool] = True

    name: Annotated[str | None, Field(max_length=MAX_NAME_CHARS, description="A label for people.")] = None
    # Of the jobs that are wrong the first one is named: often the others are so for the same reason.
    jobs: Annotated[list[Submission] | None, Field(min_length=1, max_length=MAX_JOBS, fail_fast=True)] = None
    template: Annotated[
        dict[str, JsonValue] | None,
        Field(description="A job as in POST /v1/jobs. Without a seed, one is drawn and used for all jobs."),
    ] = None
    grid: Annotated[
        Axes | None,
        Field(
            description="Lists of values by parameter: every combination, the last changes fastest. Nested: `hires.strength`."
        ),
    ] = None
    zip: Annotated[
        Axes | None,
        Field(
            description="Lists of values by parameter, all of one length: first values together, then second ones, and so on."
        ),
    ] = None
    webhook: Annotated[BatchWebhook | None, Field(description="Receives `batch.finished` once all jobs are final.")] = (
        None
    )

    _submissions: list[Submission] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        if self.name is not None:
            reject_nul(self.name)
        if (self.jobs is None) == (self.template is None):
            raise ValueError("give either jobs, or a template with a grid or a zip")
        if self.template is not None and (self.grid is None) == (self.zip is None):
            raise ValueError("a template needs either a grid or a zip")
        if self.jobs is not None and (self.grid or self.zip):
            raise ValueError("grid and zip need a template; they cannot be combined with jobs")
        self._submissions = self.jobs if self.jobs is not None else list(_swept(self.template or {}, self._cells()))
        return self

    @property
    def submissions(self) -> Sequence[Submission]:
        """All jobs of the batch, in order."""
        return self._submissions

    @property
    def axes(self) -> Mapping[str, list[JsonValue]]:
        """Values by parameter; empty for a list of jobs."""
        return self.grid or self.zip or {}

    def _cells(self) -> list[dict[str, JsonValue]]:
        names, values = list(self.axes), list(self.axes.values())
        if self.zip is not None and len({len(one) for one in values}) > 1:
            raise ValueError("zip: the lists must have the same length")
        count = math.prod(map(len, values)) if self.grid else len(values[0])
        if count > MAX_JOBS:
            raise ValueError(f"the sweep has {count} jobs; a batch may have at most {MAX_JOBS}")
        rows = product(*values) if self.grid else zip(*values, strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]


def _swept(template: Mapping[str, JsonValue], cells: Sequence[Mapping[str, JsonValue]]) -> Iterator[Submission]:
    """Yield the submission of each cell. All share one seed, so that images differ only by the swept parameters."""
    seed = template.get("seed")
    fixed = {**template, "seed": drawn_seed(seed)} if seed is None or isinstance(seed, int) else template
    for cell in cells:
        body: dict[str, Any] = dict(fixed)
        for path, value in cell.items():
            _set(body, path, value)
        try:
            yield Submission.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the job"
            raise ValueError(
                f"where {_described(cell)}: {where}: {first['msg'].removeprefix('Value error, ')}"
            ) from error


def _set(body: dict[str, Any], path: str, value: JsonValue) -> None:
    *outer, name = path.split(".")
    for part in outer:
        inner = body.get(part)
        body[part] = dict(inner) if isinstance(inner, dict) else {}  # a copy: the template serves every cell
        body = body[part]
    body[name] = value


def _described(cell: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{name[:40]} is {str(value)[:40]}" for name, value in cell.items())
