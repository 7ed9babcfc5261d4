"""Prompt styles: named texts that requests add to their prompts, from a CSV file in A1111's format."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import Unavailable

MAX_BYTES = 2**20
PLACE = "{prompt}"


@dataclass(frozen=True, slots=True)
class Style:
    """A style: its name, and the texts for the prompt and the negative prompt."""

    name: str
    prompt: str
    negative_prompt: str


def read(path: Path | None) -> Mapping[str, Style]:
    """Read the styles of a CSV file with the columns name, prompt and negative_prompt; None has none. Raises `Unavailable`."""
    try:
        text = _text(path)
    except OSError as error:
        raise Unavailable(f"The prompt styles file cannot be read ({error.strerror}).") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    styles = [Style(row.get("name") or "", row.get("prompt") or "", row.get("negative_prompt") or "") for row in rows]
    return {style.name: style for style in styles if style.name}


def check(path: Path | None) -> None:
    """Check at the start that the file can be read. Raises `SystemExit` with one line, as for wrong settings."""
    try:
        _text(path)
    except OSError as error:
        wrong = f"{path} cannot be read ({error.strerror}); name a CSV file, or none"
        raise SystemExit(f"farm: FARM_STYLES_FILE: {wrong} (.env.example explains every setting)") from None


def _text(path: Path | None) -> str:
    if path is None:
        return ""
    with path.open("rb") as file:
        return file.read(MAX_BYTES).decode("utf-8-sig", errors="replace")


def applied(prompt: str, texts: Sequence[str]) -> str:
    """Apply style texts to a prompt: a text with `{prompt}` wraps the prompt, any other is appended."""
    for text in texts:
        if PLACE in text:
            prompt = text.replace(PLACE, prompt)
        else:
            prompt = ", ".join(part for part in (prompt.strip(), text.strip()) if part)
    return prompt
