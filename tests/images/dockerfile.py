"""What the farm's Dockerfiles copy, install and run, as far as they use the few instructions that are read here."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support.compose import ROOT


@dataclass(frozen=True, slots=True)
class Image:
    """One Dockerfile. `entries` are the modules that its containers start."""

    file: Path
    entries: tuple[str, ...]

    @property
    def instructions(self) -> list[tuple[str, str]]:
        """Every instruction and its arguments, in order, continued lines joined."""
        text = re.sub(r"^\s*#.*\n", "", self.file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]

    @property
    def copied(self) -> list[str]:
        """Paths of the repository that are copied in."""
        copies = [shlex.split(arguments) for name, arguments in self.instructions if name == "COPY"]
        return [path for words in copies if not words[0].startswith("--from") for path in words[:-1]]

    @property
    def installs(self) -> list[str]:
        """The command lines of pip."""
        return [arguments for name, arguments in self.instructions if name == "RUN" and "pip install" in arguments]

    @property
    def extras(self) -> tuple[str, ...]:
        """The extras of the farm that are installed."""
        (found,) = re.findall(r'"\.\[([\w,]+)\]"', " ".join(self.installs))
        return tuple(found.split(","))


API = Image(
    ROOT / "deploy/api.Dockerfile", ("api.main", "api.serve", "api.cli.app", "worker.cpu", "shared.migrations.__main__")
)
WORKER = Image(ROOT / "deploy/worker.Dockerfile", ("worker.gpu", "api.cli.app"))
IMAGES = {"api": API, "worker": WORKER}
