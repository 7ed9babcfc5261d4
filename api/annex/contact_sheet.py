"""Contact sheet: thumbnails in rows and columns, with the values of a sweep along the edges. Pure."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Image as Picture

TILE_PX = 256
LEAST_TILE_PX = 48  # 256 in a row stay below the 16383 px that WebP can hold
MAX_SIDE_PX = 4096
GAP_PX = 6
TEXT_PX = 14
MAX_LABEL_CHARS = 40
QUALITY = 85
WEBP = "image/webp"
_PAPER, _INK, _EMPTY, _FAINT = "#ffffff", "#202124", "#eceff1", "#5f6368"


@dataclass(frozen=True, slots=True)
class Tile:
    """One cell: a thumbnail, or a word that says why there is none."""

    picture: Picture | None
    word: str = ""


@dataclass(frozen=True, slots=True)
class Edges:
    """Labels above the columns and before the rows; empty for none."""

    columns: Sequence[str]
    rows: Sequence[str]


def tile_px(columns: int, rows: int) -> int:
    """Return the side of a tile, in pixels: the sheet keeps to `MAX_SIDE_PX` unless tiles would be below `LEAST_TILE_PX`."""
    fitting = MAX_SIDE_PX // max(columns, rows, 1) - GAP_PX
    return max(LEAST_TILE_PX, min(TILE_PX, fitting))


def draw(tiles: Sequence[Tile], *, columns: int, edges: Edges) -> bytes:
    """Return the sheet as WebP. `tiles` come row by row; pictures must not be larger than a tile."""
    rows = -(-len(tiles) // columns)
    side = tile_px(columns, rows)
    font = ImageFont.load_default(TEXT_PX)
    left = GAP_PX + max((int(font.getlength(_short(text))) + GAP_PX for text in edges.rows), default=0)
    top = GAP_PX + (TEXT_PX + 2 * GAP_PX if any(edges.columns) else 0)
    size = left + columns * (side + GAP_PX), top + rows * (side + GAP_PX)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for at, tile in enumerate(tiles):
        _place(sheet, pen, tile, left + at % columns * (side + GAP_PX), top + at // columns * (side + GAP_PX), side)
    for at, text in enumerate(edges.columns[:columns]):
        pen.text((left + at * (side + GAP_PX) + side / 2, GAP_PX), _short(text), _INK, font, anchor="mt")
    for at, text in enumerate(edges.rows[:rows]):
        pen.text((GAP_PX, top + at * (side + GAP_PX) + side / 2), _short(text), _INK, font, anchor="lm")
    out = io.BytesIO()
    sheet.save(out, "WEBP", quality=QUALITY, method=2)
    return out.getvalue()


def _place(sheet: Picture, pen: ImageDraw.ImageDraw, tile: Tile, x: int, y: int, side: int) -> None:
    pen.rectangle((x, y, x + side - 1, y + side - 1), fill=_EMPTY)
    if tile.picture is None:
        font = ImageFont.load_default(TEXT_PX)
        pen.text((x + side / 2, y + side / 2), tile.word, _FAINT, font, anchor="mm")
    else:
        width, height = tile.picture.size
        sheet.paste(tile.picture, (x + (side - width) // 2, y + (side - height) // 2))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_LABEL_CHARS else line[: MAX_LABEL_CHARS - 1] + "…"
