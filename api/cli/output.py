"""Terminal output: results on stdout, everything else on stderr, each message one line.

Text from outside passes through `printable`, so that no prompt can send control sequences to the terminal.
"""

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Failure(Exception):
    """A command failed. The message is the one line that the user reads."""

    exit_code = 1


def say(line: str) -> None:
    """Print a result to stdout."""
    _write(sys.stdout, line)


def note(line: str) -> None:
    """Print a note to stderr."""
    _write(sys.stderr, line)


def complain(line: str) -> None:
    """Print an error to stderr."""
    note(f"farm: {line}")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: aligned on a terminal, else tab-separated."""
    if not sys.stdout.isatty():
        for row in [headers, *rows]:
            say("\t".join(row))
        return
    drawn = Table(*headers, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        drawn.add_row(*(Text(printable(cell), overflow="ellipsis") for cell in row))
    Console(file=sys.stdout).print(drawn)


def printable(text: str) -> str:
    """Return text as one line without control characters or escapes."""
    return "".join(character if character.isprintable() else " " for character in text)


def shortened(text: str, width: int) -> str:
    """Return at most `width` characters of text, on one line."""
    flat = " ".join(printable(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def forgive_encoding() -> None:
    """Let a terminal that cannot show a character show a question mark instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def _write(stream: TextIO, line: str) -> None:
    stream.write(
        "".join(character if character.isprintable() or character == "\t" else " " for character in line) + "\n"
    )
    stream.flush()
