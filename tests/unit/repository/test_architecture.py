"""The laws of the house that import-linter cannot state."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("api", "worker", "shared", "deploy")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LISTS = {"shared/infra/tables.py", "shared/errors.py"}
BANNED_NAMES = {"utils", "common", "core", "base", "helpers", "models", "service"}


@pytest.mark.parametrize("entry", ["api.main", "api.cli", "worker.cpu", "worker.gpu"])
def test_no_torch_behind_this_door(entry: str) -> None:
    probe = f"import sys, {entry}; print(*(m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_importing_shared_reads_no_environment() -> None:
    probe = (
        "import os, importlib, pkgutil, shared\n"
        "before = dict(os.environ); os.environ['FARM_LEASE_SECONDS'] = 'nonsense'\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(shared.__path__, 'shared.')\n"
        "    if not m.name.startswith('shared.migrations')]\n"
    )
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True)


def test_files_stay_readable() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    # One table, one error after another: long, but read an entry at a time.
    assert not {path: n for path, n in lines.items() if n > (500 if path in LISTS else 400)}


def test_lines_of_the_consoles_scripts_stay_readable() -> None:
    scripts = sorted((ROOT / "api/web/static/js").glob("*.js"))
    assert scripts
    lines = [
        (path.name, number, line) for path in scripts for number, line in enumerate(path.read_text().splitlines(), 1)
    ]
    # As long as ruff lets lines of Python be.
    assert not [(name, number) for name, number, line in lines if len(line) > 120]


def test_functions_stay_readable() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= 60
        and "migrations" not in path.parts
    }
    assert not long


def test_no_file_is_named_after_nothing() -> None:
    assert not [path for path in SOURCES if path.stem in BANNED_NAMES or path.parent.name in BANNED_NAMES]


def test_nothing_unpickles() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert "import pickle" not in text, path
        assert not re.search(r"(?<!safetensors\.)torch\.load\(", text), path


def test_the_dialects_names_stay_in_its_folder() -> None:
    outside = [path for path in SOURCES if "a1111" not in path.parts]
    for path in outside:
        assert not re.search(r"sdapi|sd_model_checkpoint|n_iter|cfg_scale|override_settings", path.read_text()), path
