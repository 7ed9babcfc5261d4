"""What the annex can be asked for. An act gets plain values and bytes, and returns such; what refuses it is a `FarmError`."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

from api.annex import contact_sheet, json_text, thumbnails, token_counts
from api.annex.contact_sheet import Edges, Tile
from api.annex.token_counts import Word
from shared.errors import ObjectDamaged, ObjectMissing
from shared.files import pictures
from shared.infra.storage import Storage

FETCHED_AT_ONCE = 4
DAMAGED, LOST = "damaged", "lost"


class Made(NamedTuple):
    """What an act returns."""

    about: dict[str, Any]
    data: bytes = b""


# Where a picture lies, and its digest.
Source: TypeAlias = Sequence[str]
Act: TypeAlias = Callable[..., Made]


def count_tokens(_storage: Storage, _data: bytes, *, embeddings: Sequence[Sequence[Any]], **prompts: Any) -> Made:
    """Count the tokens of two prompts."""
    return Made(token_counts.counted(**prompts, embeddings=[Word(*one) for one in embeddings]))


def judge_json(_storage: Storage, data: bytes) -> Made:
    """Tell whether a body is JSON that may be parsed: its digest and the places of its large strings, or what is wrong."""
    try:
        value = json_text.parsed(data)
    except json_text.Absurd as error:
        return Made({"absurd": str(error)})
    except json.JSONDecodeError as error:
        return Made({"wrong": [error.msg, error.pos]})
    except (ValueError, RecursionError):
        return Made({"wrong": None})
    places = json_text.large_places(data, value)
    return Made({"digest": json_text.digest(value, comma=",", colon=":"), "places": places})


def fetch(storage: Storage, _data: bytes, *, key: str, sha256: str) -> Made:
    """Read an object whole."""
    return Made({}, storage.get_whole(key, sha256=sha256))


def make_thumbnail(storage: Storage, _data: bytes, *, key: str, sha256: str) -> Made:
    """Make an image small."""
    return Made({}, thumbnails.thumbnail(storage.get_whole(key, sha256=sha256)))


def draw_sheet(
    storage: Storage, _data: bytes, *, places: Sequence[Source | str], columns: int, edges: Sequence[Sequence[str]]
) -> Made:
    """Draw a contact sheet of images, and of words where there is none. Tells which images were `lost` and `damaged`."""
    px = contact_sheet.tile_px(columns, -(-len(places) // columns))
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        tiles = list(pool.map(lambda place: _tile(storage, px, place), places))
    sheet = contact_sheet.draw(tiles, columns=columns, edges=Edges(*edges))
    found = [not isinstance(place, str) for place in places]
    words = {
        word: [index for index, tile in enumerate(tiles) if found[index] and tile.word == word]
        for word in (LOST, DAMAGED)
    }
    return Made(words, sheet)


def normalise_picture(_storage: Storage, data: bytes, *, what: str, is_base64: bool, is_mask: bool) -> Made:
    """Decode a client's picture; return its size and a PNG of it."""
    file = pictures.from_base64(data.decode("utf-8", "surrogatepass"), what) if is_base64 else bytes(data)
    picture = pictures.decode_mask(file, what=what) if is_mask else pictures.decode(file, what=what)
    return Made({"size": picture.size}, pictures.to_png(picture))


ACTS: Mapping[str, Act] = {
    act.__name__: act for act in (count_tokens, judge_json, fetch, make_thumbnail, draw_sheet, normalise_picture)
}


def _tile(storage: Storage, px: int, place: Source | str) -> Tile:
    if isinstance(place, str):
        return Tile(None, place)
    key, sha256 = place
    try:
        return Tile(thumbnails.shrunk(storage.get_whole(key, sha256=sha256), px))
    except ObjectMissing:
        return Tile(None, LOST)
    except ObjectDamaged:
        return Tile(None, DAMAGED)
