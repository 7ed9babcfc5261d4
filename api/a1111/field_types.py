"""Lenient field types for A1111 requests: numbers as text, 12.5 for an int, "true" for a bool, null and "" for a default.

Bounds are checked after translation, by the schema of a submission.
"""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_NUMBER_CHARS = 40


def _whole(value: Any) -> int:
    number = _number(value)
    return int(number)


def _number(value: Any) -> float:
    """Parse a finite number. Ints stay ints, because strict clients read them back."""
    if isinstance(value, str) and len(value) <= MAX_NUMBER_CHARS:
        try:
            value = float(value) if set(value) & set(".eEnN") else int(value)
        except ValueError:
            raise ValueError("value is not a valid number") from None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError("value is not a valid number")


_TRUTH = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


def _flag(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in _TRUTH:
        return _TRUTH[value.strip().lower()]
    if isinstance(value, (bool, int, float)):
        return bool(value)
    raise ValueError("value could not be parsed to a boolean")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise ValueError("value is not a string")  # noqa: TRY004 - pydantic reports ValueError
    return value


def _mapping(value: Any) -> dict[str, Any]:
    # Clients written in languages without a difference send [] for {}.
    return _plain(value) if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    try:
        _check(value)
    except (ValueError, RecursionError):
        raise ValueError("value is not valid JSON") from None
    return value


def _check(value: Any) -> None:
    """Raise `ValueError` for what Python's parser takes for JSON, but is none: NaN, Infinity, half a surrogate pair."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check(name)
            _check(inner)
    elif isinstance(value, list):
        for inner in value:
            _check(inner)


Int = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[int | float, BeforeValidator(_number)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Text = Annotated[str, BeforeValidator(_text)]
TextList = Annotated[list[Text], Field(fail_fast=True)]
Mapping = Annotated[dict[str, Any], BeforeValidator(_mapping)]
Plain = Annotated[Any, BeforeValidator(_plain)]


class Lax(BaseModel):
    """Base of A1111 requests: any field may be missing, null or empty; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None and value != ""}
