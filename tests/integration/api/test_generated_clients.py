"""Clients that generators make of the OpenAPI document submit, wait, list and fetch."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from api.main import create_app
from shared.infra.db import Database
from shared.settings import Settings
from tests import packages
from tests.support.factories import DEMO
from tests.support.waiting import LIMIT_S
from tests.support.workshop import serving, working

PROGRAMS = Path(__file__).parent / "generated"
# What the generator for Python does not know how to read into a client, it reads as a file.
FILES = dict.fromkeys(("image/png", "image/webp", "image/jpeg", "application/zip"), "application/octet-stream")
STRICT = {
    "strict": True,
    "target": "es2022",
    "module": "es2022",
    "moduleResolution": "bundler",
    "lib": ["es2022", "dom"],
    "types": [],
}


@pytest.fixture
def farm(settings: Settings, db: Database, redis: Redis, announced: str) -> Iterator[str]:
    assert announced == DEMO
    assert redis.ping()
    assert db
    with serving(settings) as url, working(settings, slots=1):
        yield url


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("document") / "openapi.json"
    path.write_text(json.dumps(create_app().openapi()))
    return path


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environ, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_generated_python_client(farm: str, document: Path, tmp_path: Path) -> None:
    site = packages.file("python/openapi_python_client")
    if site is None:
        pytest.skip("openapi-python-client is not here: make test brings it")
    (tmp_path / "config.yml").write_text(json.dumps({"content_type_overrides": FILES, "post_hooks": []}))
    generate = ("generate", "--path", document, "--output-path", "client", "--config", "config.yml")
    said = run(sys.executable, "-m", "openapi_python_client", *generate, cwd=tmp_path, PYTHONPATH=str(site.parent))
    assert "WARNING" not in said
    run(sys.executable, PROGRAMS / "client.py", farm, cwd=tmp_path, PYTHONPATH=str(tmp_path / "client"))


def test_a_generated_typescript_client(farm: str, document: Path, tmp_path: Path) -> None:
    node, modules = packages.program("node"), packages.file("node/node_modules")
    if node is None or modules is None:
        pytest.skip("openapi-typescript is not here: make test brings it where there is npm")
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": STRICT, "files": ["client.ts"]}))
    (tmp_path / "client.ts").write_text((PROGRAMS / "client.ts").read_text())
    # By default it takes what has a default for what must be given.
    generate = (document, "-o", "schema.ts", "--default-non-nullable=false")
    said = run(node, modules / "openapi-typescript/bin/cli.js", *generate, cwd=tmp_path)
    assert "warn" not in said.lower()
    run(node, modules / "typescript/bin/tsc", cwd=tmp_path)
    run(node, "client.js", farm, cwd=tmp_path)
