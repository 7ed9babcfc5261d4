"""The parameters of jobs as the models declare them, and jobs that make use of all of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, TypeVar, get_args

import pytest
from pydantic import BaseModel, ValidationError

from api.admission.resolution import StoredInputs, resolve
from api.admission.submissions import Submission
from shared.vocabulary.params import GenerationParams
from tests.support.factories import DEMO

M = TypeVar("M", bound=BaseModel)
# Parameters that a place need not tell of, and why.
Excuses = Mapping[str, str]

COMMON = {"prompt": "a red circle", "negative_prompt": "blurry", "seed": 7, "width": 64, "height": 128, "clip_skip": 2}
LORAS = [{"name": "detail", "weight": 0.5, "text_encoder_weight": 0.25}]
# Hires fix by a scale and by a size, and what starts from a picture, whole and with a mask.
SUBMISSIONS: tuple[dict[str, Any], ...] = (
    {**COMMON, "loras": LORAS, "variation": {"seed": 3, "strength": 0.2}, "hires": {"scale": 1.5}},
    {**COMMON, "hires": {"width": 128, "height": 256, "steps": 9, "sampler": "euler", "schedule": "karras"}},
    {**COMMON, "init_image": "aGk=", "strength": 0.5},
    {
        **COMMON,
        "init_image": "aGk=",
        "mask_image": "aGk=",
        "strength": 0.5,
        "inpaint": {"only_masked": True, "padding": 8},
    },
)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the paths of a model's fields, with those of the models in it: `steps`, `hires.steps`, `loras.weight`."""
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner:
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def required(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the paths of the fields that have no default."""
    for name, field in model.model_fields.items():
        if field.is_required():
            yield prefix + name
        if inner := _model_in(field.annotation):
            yield from required(inner, f"{prefix}{name}.")


def submissions(model: type[M]) -> list[M]:
    """Return submissions that use every parameter between them."""
    return [model.model_validate(fields) for fields in SUBMISSIONS]


def resolved(submission: Submission) -> GenerationParams:
    """Return what is rendered for a submission."""
    inputs = StoredInputs(
        init_image="inputs/picture" if submission.init_image else None,
        init_size=(96, 64) if submission.init_image else None,
        mask_image="inputs/mask" if submission.mask_image else None,
    )
    return resolve(submission, checkpoint=DEMO, vae="other-vae", inputs=inputs)


def jobs(model: type[M]) -> list[M]:
    """Return parameters that leave no field unused between them."""
    return [model.model_validate(resolved(one).model_dump()) for one in submissions(Submission)]


def changes(job: M, path: str) -> Iterator[M]:
    """Yield a job with another value at the path, each that the model allows; none where the job does not have that part."""
    fields = job.model_dump()
    owner, name = _owner(fields, path)
    if owner is None:
        return
    before = owner[name]
    for value in _others(before):
        owner[name] = value
        try:
            changed = type(job).model_validate(fields)
        except ValidationError:
            continue
        if changed != job:
            yield changed


def at(body: Any, path: str) -> Any:
    """Return what a body of JSON has at a path, of a list its first; None where it has nothing there."""
    for name in path.split("."):
        body = body[0] if isinstance(body, list) and body else body
        body = body.get(name) if isinstance(body, dict) else None
    return body


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _owner(fields: Any, path: str) -> tuple[dict[str, Any] | None, str]:
    *outer, name = path.split(".")
    for part in outer:
        fields = fields[part]
        if isinstance(fields, list | tuple):
            fields = fields[0] if fields else None
        if fields is None:
            return None, name
    return fields, name


def _others(value: Any) -> list[Any]:
    """Guess values that a field may have instead."""
    match value:
        case Enum():
            return list(type(value))
        case bool():
            return [not value]
        case int() | float():
            return [value + 8, value + 1, value / 2, value - 1]
        case str():
            return [f"{value}s", "txt2img", "img2img"]
    return ["karras", "exponential", 0.5, 3, 64, True, "other", "euler"]


def forgotten(model: type[M], tells: Callable[[str], bool], place: str, excuses: Excuses) -> list[str]:
    """Say which parameters of a model a place does not tell of, and which excuses are out of date."""
    found = [f"{path}: {place}" for path in leaves(model) if path not in excuses and not tells(path)]
    return found + [f"{path} needs no excuse any more ({why})" for path, why in excuses.items() if tells(path)]


def differs(given: Iterable[M], path: str, of: Callable[[M], Any]) -> bool:
    """Say whether what is made of a job is another for another value at the path."""
    return any(of(other) != of(one) for one in given for other in changes(one, path))


def fail_if_any(lines: Iterable[str]) -> None:
    """Fail a test with the sentences that say what is forgotten."""
    if found := list(lines):
        pytest.fail("\n".join(found), pytrace=False)
