"""Reads docker-compose.yml as the engine would, and turns a service into a program of this machine.

Only what a container would bring is replaced: host names and ports by local ones, mount points by local folders, the programs of
an image by those of this environment.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.standalone import ports, redis, s3
from deploy.standalone.program import Program
from tests import packages

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<how>:?[-?])(?P<other>[^}]*))?\}")

Service = Mapping[str, Any]


class Unset(Exception):
    """A variable that the file insists on is not set."""


def services(env: Mapping[str, str]) -> dict[str, Service]:
    """The services with every variable replaced by its value in `env`."""
    text = (ROOT / "docker-compose.yml").read_text()
    content: dict[str, Service] = _substituted(yaml.safe_load(text), env)["services"]
    return content


@dataclass(frozen=True, slots=True)
class Machine:
    """What stands for the containers' network and mounts: text of the file, and the same on this machine."""

    addresses: Mapping[str, str]
    folders: Mapping[str, str]

    def local(self, text: str, own: Mapping[str, str]) -> str:
        """Put local addresses and folders in place of the containers' in one word; `own` are the service's ports on loopback."""
        for there, here in {**self.addresses, **own}.items():
            text = re.sub(rf"(?<![\w.]){re.escape(there)}(?!\d)", here, text)
        for there, here in self.folders.items():
            text = re.sub(rf"(^|=){re.escape(there)}(?![\w-])", rf"\g<1>{here}", text)
        return text

    def program(
        self, name: str, service: Service, own: Mapping[str, str], port: int | None, *, environ: Mapping[str, str]
    ) -> Program:
        """The service's own command with its own environment, ready when it listens and its health check passes."""
        env = {**environ, **{key: self.local(str(value), own) for key, value in service.get("environment", {}).items()}}
        words = [self.local(word, own) for word in _command(service)]
        return Program(
            name=name,
            argv=tuple(_on_this_machine(words, service)),
            env=env,
            ready=lambda: (port is None or not ports.is_free("127.0.0.1", port)) and self.is_healthy(service, own),
            ready_within_s=120.0,
            once=service["restart"].startswith("on-failure"),
            grace_s=float(service.get("stop_grace_period", "10s").removesuffix("s")),
        )

    def is_healthy(self, service: Service, own: Mapping[str, str]) -> bool:
        """Run the service's health check where it is one of Python's; the images' own tools are not here."""
        check = service.get("healthcheck", {}).get("test", [])
        if check[1:2] != ["python"]:
            return True
        words = [sys.executable, *(self.local(word, own) for word in check[2:])]
        return subprocess.run(words, capture_output=True, check=False, timeout=60).returncode == 0


def _command(service: Service) -> list[str]:
    command = service["command"]
    return shlex.split(command) if isinstance(command, str) else list(command)


def _on_this_machine(words: list[str], service: Service) -> list[str]:
    first, *rest = words
    image = service.get("image", "")
    if image.startswith(("rclone/", "prom/")):  # these words follow the image's entry point
        return [
            str(s3.server_binary()) if image.startswith("rclone/") else packages.program("prometheus") or "",
            *words,
        ]
    if first == "redis-server":
        return [str(redis.server_binary()), *rest]
    return [sys.executable, *rest] if first == "python" else [sys.executable, "-m", first, *rest]


def _substituted(node: Any, env: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _substituted(value, env) for key, value in node.items()}
    if isinstance(node, list):
        return [_substituted(value, env) for value in node]
    return _VARIABLE.sub(lambda found: _value(found, env), node) if isinstance(node, str) else node


def _value(found: re.Match[str], env: Mapping[str, str]) -> str:
    name, how, other = found["name"], found["how"] or "", found["other"] or ""
    value = env.get(name)
    if value is None or (how.startswith(":") and not value):
        if how.endswith("?"):
            raise Unset(f"{name}: {other}")
        return other
    return value
