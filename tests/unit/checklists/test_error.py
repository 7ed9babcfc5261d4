"""An error has its places: "How to add" in ARCHITECTURE.md."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from api.main import create_app
from shared import errors
from shared.errors import FarmError
from tests.support.parts import ROOT

# With these a person can do something; the console says what.
ADVISED = {401, 403, 413, 429, 503}
WORDS = (ROOT / "api/web/static/js/words.js").read_text()
# Raised inside a worker or before a process serves: no answer has their status.
NEVER_ANSWERED = {500}
AT_A_START = {errors.NoDevice, errors.NoBucket, errors.DatabaseUnfit}  # end a process before it has a job


def subclasses(error: type[FarmError]) -> Iterator[type[FarmError]]:
    for one in error.__subclasses__():
        if one.__module__ == errors.__name__:
            yield one
            yield from subclasses(one)


ERRORS = list(subclasses(FarmError))
ALL: list[type[FarmError]] = [FarmError, *ERRORS]


def by_name(error: type[FarmError]) -> str:
    return error.__name__


@pytest.mark.parametrize("error", ERRORS, ids=by_name)
def test_every_error_is_in_the_tree(error: type[FarmError]) -> None:
    lines = re.findall(rf"^[│├└─ ]*{error.__name__}( \d+)?\b", errors.__doc__ or "", re.MULTILINE)
    assert lines, f"{error.__name__} is not in the tree at the top of shared/errors.py"
    assert lines[0].strip() in {str(error.status), ""}, f"the tree has another status of {error.__name__}"


@pytest.mark.parametrize("error", ERRORS, ids=by_name)
def test_every_error_has_a_code_and_words_of_its_own(error: type[FarmError]) -> None:
    assert [one for one in ALL if one.code == error.code] == [error], f"{error.code} is another's code"
    assert error.__doc__, f"{error.__name__} has no docstring, which is its message"
    assert error.__doc__.endswith((".", "!")), error.__doc__


@pytest.fixture(scope="module")
def answered() -> set[int]:
    """The statuses that some operation of the API documents."""
    paths: Mapping[str, Mapping[str, Any]] = create_app().openapi()["paths"]
    return {
        int(status)
        for path, item in paths.items()
        if path.startswith("/v1/")
        for operation in item.values()
        for status in operation["responses"]
    }


@pytest.mark.parametrize("error", ERRORS, ids=by_name)
def test_every_status_is_documented(error: type[FarmError], answered: set[int]) -> None:
    where = "name it in documented() of the routes that raise it"
    assert error.status in answered | NEVER_ANSWERED, f"no route documents {error.status}: {where}"


@pytest.mark.parametrize("error", ERRORS, ids=by_name)
def test_the_console_says_what_to_do(error: type[FarmError]) -> None:
    (said,) = re.findall(r"\berrors: \{(.*?)\n  \}", WORDS, re.DOTALL)
    names = set(re.findall(r"^\s*(\w+):", said, re.MULTILINE))
    is_told = error.status not in ADVISED or {error.code, str(error.status)} & names
    assert is_told, f"words.errors of api/web/static/js/words.js has nothing for {error.code} or {error.status}"


@pytest.mark.parametrize("error", [one for one in ERRORS if one.status == 500], ids=by_name)
def test_operators_find_why_a_job_failed(error: type[FarmError]) -> None:
    is_named = f"`{error.code}`" in (ROOT / "deploy/runbooks/failed.md").read_text()
    assert is_named != (error in AT_A_START), f"deploy/runbooks/failed.md does not say what to do about {error.code}"
