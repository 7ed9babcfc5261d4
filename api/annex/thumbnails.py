"""Thumbnails: finished images made small."""

import io

from PIL import Image
from PIL.Image import Image as Picture

THUMBNAIL_PX = 320  # twice what a tile shows, for dense screens
THUMBNAIL_QUALITY = 80


def shrunk(png: bytes, side: int) -> Picture:
    """Return a finished image (PNG) with sides of at most `side` pixels."""
    # Our own worker made it: its size is bounded by what a job may ask for, not by Pillow's guess at bombs.
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        small = picture.convert("RGB")
        small.thumbnail((side, side), reducing_gap=2.0)
    return small


def thumbnail(png: bytes) -> bytes:
    """Return a finished image (PNG) as a small WebP."""
    out = io.BytesIO()
    shrunk(png, THUMBNAIL_PX).save(out, "WEBP", quality=THUMBNAIL_QUALITY, method=2)
    return out.getvalue()
