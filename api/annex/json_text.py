"""JSON of clients as text: bounded before it is parsed, and its digest. Pure."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

# Members of one object. Clients of A1111 send back all its options, some hundreds.
MAX_MEMBERS = 1_000
# Values of a body, members and elements alike: a batch of 1,000 jobs that name every parameter has fewer.
MAX_VALUES = 100_000
# Of an integer in a body that is not light: its conversion takes the square of its digits.
MAX_DIGITS = 400
# Up to this size, and to MAX_MEMBERS values, a body is read in less time than a thread takes to begin.
LIGHT_BYTES = 64 * 1024
# Strings from this size on are cut out before the rest is parsed, where they are plain: ASCII, and nothing of them is escaped.
LARGE_CHARS = 64 * 1024
_OPENING_BYTES = 64
_STRING_REST = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
# Of a string, at a time: other threads wait meanwhile.
_PIECE_CHARS = 2**18


# Where a large string stands in a body, without its quotes.
Place: TypeAlias = tuple[int, int]


class Absurd(ValueError):
    """More JSON than any request needs."""


def parsed(raw: bytes) -> Any:
    """Parse JSON. Raises `Absurd` for an absurd number of members or values, `ValueError` for what is no JSON."""
    text = raw.decode(json.detect_encoding(raw), "surrogatepass")
    # Commas and brackets in strings count too: enough to pass nearly every body, in a few milliseconds for the largest.
    if sum(text.count(mark) for mark in ",[{") > MAX_VALUES and _values(text) > MAX_VALUES:
        raise Absurd(f"has more than {MAX_VALUES:,} values; send less at once")
    return json.loads(text, object_hook=_bounded, parse_int=_integer if len(raw) > LIGHT_BYTES else None)


def digest(value: Any, *, comma: str = ", ", colon: str = ": ", plain: Sequence[str] = ()) -> str:
    """Return the SHA-256, in hex, of what `json.dumps(value, sort_keys=True)` makes of a JSON value, in no more memory.

    Strings known to be `plain`, the very objects, are not encoded to see that nothing changes.
    """
    made = hashlib.sha256()
    for piece in _encoded(value, comma, colon, plain):
        made.update(piece.encode())
    return made.hexdigest()


def large_places(raw: bytes, value: Any) -> list[Place]:
    """Return where large plain strings stand in a body that was parsed into `value`; none if that cannot be told for certain."""
    places: list[Place] = []
    at = 0
    for text in _large_strings(value):
        begin = _place_of(b'"' + text.encode() + b'"', raw, at)
        if begin is not None:
            places.append((begin + 1, at := begin + 1 + len(text)))
    # A quoted text may stand inside of another one, behind a backslash.
    try:
        return places if whole(raw, places)[0] == value else []
    except ValueError:
        return []


def whole(raw: bytes, places: Sequence[Place]) -> tuple[Any, Sequence[str]]:
    """Parse a body that is known to be fit, except for its large strings, which are taken as they are; return those, too."""
    large = [raw[begin:end].decode("ascii") for begin, end in places]
    names = {f"\0large {index}": text for index, text in enumerate(large)}
    ends = [0, *(at for place in places for at in place), len(raw)]
    between = [raw[begin:end].decode() for begin, end in zip(ends[::2], ends[1::2], strict=True)]
    named = [json.dumps(name)[1:-1] for name in names]
    light = "".join(part for pair in zip(between, [*named, ""], strict=True) for part in pair)
    return _filled(json.loads(light), names), large


def _place_of(text: bytes, raw: bytes, at: int) -> int | None:
    # Of long texts `find` takes the square where they repeat themselves, as pictures do.
    while (begin := raw.find(text[:_OPENING_BYTES], at)) >= 0:
        if raw.startswith(text, begin):
            return begin
        at = begin + 1
    return None


def _large_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= LARGE_CHARS and value.isascii() and json.dumps(value)[1:-1] == value:
            yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _large_strings(inner)


def _filled(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [_filled(inner, names) for inner in value]
    return {name: _filled(inner, names) for name, inner in value.items()} if isinstance(value, dict) else value


def _bounded(members: dict[str, Any]) -> dict[str, Any]:
    if len(members) > MAX_MEMBERS:
        raise Absurd(f"has an object of {len(members):,} members; an object may have {MAX_MEMBERS:,}")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _values(text: str) -> int:
    """Count the values of JSON, up to one too many. What stands in strings does not count."""
    count, at = 1, 0
    while at < len(text) and count <= MAX_VALUES:
        quote = text.find('"', at)
        end = len(text) if quote < 0 else quote
        count += sum(text.count(mark, at, end) for mark in ",[{")
        at = _string_end(text, end + 1)
    return count


def _string_end(text: str, at: int) -> int:
    """Return the place after the closing quote of a string whose text begins at `at`."""
    while at < len(text) and text[at] != '"':
        end = _STRING_REST.match(text, at, at + _PIECE_CHARS).end()  # type: ignore[union-attr]  # it matches nothing, too
        if end == at:
            return len(text)  # a backslash at the very end
        at = end
    return at + 1


def _encoded(value: Any, comma: str, colon: str, plain: Sequence[str]) -> Iterator[str]:
    if isinstance(value, str):
        yield '"'
        if any(value is one for one in plain):
            yield value
            value = ""
        for at in range(0, len(value), _PIECE_CHARS):
            yield json.dumps(value[at : at + _PIECE_CHARS])[1:-1]
        yield '"'
    elif isinstance(value, dict):
        yield "{"
        for index, name in enumerate(sorted(value)):
            yield f"{comma if index else ''}{json.dumps(name)}{colon}"
            yield from _encoded(value[name], comma, colon, plain)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for index, inner in enumerate(value):
            if index:
                yield comma
            yield from _encoded(inner, comma, colon, plain)
        yield "]"
    else:
        yield json.dumps(value)
