"""A command of `farm` is registered, helps, is documented and tested: "How to add" in ARCHITECTURE.md."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.models import ParameterInfo

from api import cli
from api.cli.app import app, farm
from tests.support.parts import ROOT

PAGES = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
TESTS = [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "checklists"]


def commands(group: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command with the words that call it: (`keys`, `create`)."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))
NAMES = [" ".join(words) for words in COMMANDS]


def test_every_function_that_reads_a_command_line_is_a_command() -> None:
    root = typer.main.get_command(app)
    groups: list[Any] = [root, *root.commands.values()]  # type: ignore[attr-defined]
    registered = {inspect.unwrap(one.callback) for one in (*groups, *COMMANDS.values()) if one.callback}
    registered.add(farm)  # the callback of the whole
    for name, function in readers_of_command_lines():
        assert function in registered, f"{name} is no command: register it in api/cli/app.py"


def readers_of_command_lines() -> Iterator[tuple[str, Any]]:
    """Yield the functions of `api.cli` whose parameters are declared for typer."""
    for module in (importlib.import_module(one.name) for one in pkgutil.iter_modules(cli.__path__, "api.cli.")):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and _is_declared(function):
                yield f"{module.__name__}.{name}", function


def _is_declared(function: Any) -> bool:
    hints = function.__annotations__.values() if not function.__name__.startswith("_") else ()
    metadata = (one for hint in hints for one in getattr(hint, "__metadata__", ()))
    return typer.Context in hints or any(isinstance(one, ParameterInfo) for one in metadata)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_option_has_its_help(name: str) -> None:
    command = COMMANDS[tuple(name.split())]
    assert command.help, f"farm {name} has no docstring, which is its help"
    for option in command.params:
        assert option.help or option.param_type_name == "argument", f"farm {name}: {option.opts} has no help"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_documented(name: str) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert re.search(rf"\bfarm (--\S+ \S+ )*{name}\b", text), (
        f"no page of README.md, docs/ or deploy/ names farm {name}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_tried(name: str) -> None:
    """By a test that calls it, or by one that runs the page that does."""
    words = r"[\"'],\s*[\"']".join(name.split())
    calls = rf"(main\(\[|FARM,|farm\(|run\(|\(-c,)[^\])]*[\"']{words}[\"']"
    run_by_tests = [
        block
        for page in (ROOT / "deploy/runbooks").glob("*.md")
        for block in re.findall(r"^```sh \S+$(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    is_called = any(re.search(calls, test.read_text()) for test in TESTS)
    is_run = any(re.search(rf"\bfarm (--\S+ \S+ )*{name}\b", block) for block in run_by_tests)
    assert is_called or is_run, f"no test calls farm {name}"
