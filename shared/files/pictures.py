"""Decoding of untrusted pictures from clients into plain RGB or a gray mask.

Only the decoders of `FORMATS` see the bytes, and only after a check of the size in the header (decompression bombs).
"""

import base64
import binascii
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from shared.errors import BadPicture

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # no TIFF: many codecs behind one name, each a way in
MAX_INPUT_PIXELS = 4096 * 4096  # RGBA of this size takes 0.15 GB to flatten and store; four times what can be rendered
MAX_INPUT_SIDE_PX = 16_384
COMPRESSION = 1  # zlib's fastest; a normalised picture is stored for one job
OPAQUE = 128  # of 255
COLOR_SLACK = 2  # gray levels; editors that premultiply round colours under soft edges

_ASK = "send a PNG, JPEG, WebP, BMP or GIF"
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]{0,20}:", re.IGNORECASE)
_SNIPPET_CHARS = 300


def from_base64(text: str, what: str) -> bytes:
    """Decode base64 text or a data URI; whitespace and missing padding are fine.

    Raises `BadPicture`, naming the field `what`, for a URL or anything that is not base64.
    """
    prefix = _DATA_URI.match(text[:_SNIPPET_CHARS].lstrip())
    if prefix:
        text = text.lstrip()[prefix.end() :]
    elif _URL.match(text[:_SNIPPET_CHARS]):
        raise BadPicture(f"{what}: only http and https URLs are fetched; send one, or the file itself in base64.")
    packed = "".join(text.split()).rstrip("=")
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(f"{what}: not valid base64; {_ASK} file in base64 or as a data URI.") from error
    if not data:
        raise BadPicture(f"{what}: is empty; {_ASK} file in base64 or as a data URI.")
    return data


class PixelBudget:
    """A semaphore over the pixels that are decoded at once: bounds the memory that decoding takes."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._reserved = 0
        self._freed = Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Reserve pixels for the block; wait until they are free. A picture larger than the budget reserves all of it."""
        share = min(pixels, self._pixels)
        with self._freed:
            self._freed.wait_for(lambda: self._reserved + share <= self._pixels)
            self._reserved += share
        try:
            yield
        finally:
            with self._freed:
                self._reserved -= share
                self._freed.notify_all()


def pixels_in(data: bytes, *, what: str = "init_image") -> int:
    """Return a picture's pixels, from its header alone. Raises `BadPicture` as `decode` does."""
    picture = _opened(data, what)
    _judge(picture, what)
    return picture.width * picture.height


def decode(data: bytes, *, what: str = "init_image") -> Image.Image:
    """Return a picture as RGB, turned by its EXIF orientation, transparency over white as in A1111.

    16-bit gray is scaled to 8; colour profiles are ignored. Raises `BadPicture`, naming the field `what` and the fix.
    """
    picture = _upright(data, what)
    if not picture.has_transparency_data:
        return _as(picture, "RGB")
    picture = _as(picture, "RGBA")
    ground = Image.new("RGB", picture.size, "white")
    ground.paste(picture, mask=picture)
    return ground


def decode_mask(data: bytes, *, what: str = "mask_image") -> Image.Image:
    """Return a mask as L: white is painted anew.

    If the visible part has one colour, the alpha channel is the mask, cut at the middle as in A1111. Otherwise the luminance is,
    soft edges included, and transparent pixels are black. Raises `BadPicture` as `decode` does.
    """
    picture = _upright(data, what)
    if not picture.has_transparency_data:
        return _as(picture, "L")
    picture = _as(picture, "RGBA")
    alpha = picture.getchannel("A")
    opaque = alpha.point([0] * OPAQUE + [255] * (256 - OPAQUE))
    if opaque.histogram()[0] and _is_of_one_color(picture, opaque):
        return opaque
    return ImageChops.multiply(picture.convert("L"), alpha)


def to_png(picture: Image.Image) -> bytes:
    """Encode for storage: fast, and without metadata of the original file."""
    bare = picture.copy()
    bare.info = {}
    out = io.BytesIO()
    bare.save(out, format="PNG", compress_level=COMPRESSION)
    return out.getvalue()


def _upright(data: bytes, what: str) -> Image.Image:
    """Open, check, decode, convert to eight bits and turn by EXIF."""
    if not data:
        raise BadPicture(f"{what}: is empty; {_ASK} file.")
    picture: Image.Image = _opened(data, what)
    _judge(picture, what)
    try:
        picture.load()
        picture = _eight_bit(picture)
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception as error:  # decoders fed with garbage raise whatever they like
        raise BadPicture(f"{what}: is truncated or corrupt; send it again, or save it again as PNG.") from error
    return picture


def _as(picture: Image.Image, mode: str) -> Image.Image:
    """Return a picture in a mode. One that has it is not copied: the largest take 64 MB."""
    return picture if picture.mode == mode else picture.convert(mode)


def _opened(data: bytes, what: str) -> Image.Image:
    """Open a picture: read its header alone."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture(f"{what}: {_too_large()}") from error
    except UnidentifiedImageError as error:
        raise BadPicture(f"{what}: not a picture that the farm can read; {_ASK} file.") from error
    except Exception as error:
        raise BadPicture(f"{what}: its header is corrupt; {_ASK} file.") from error


def _judge(picture: Image.Image, what: str) -> None:
    width, height = picture.size
    if min(width, height) < 1:
        raise BadPicture(f"{what}: is {width} by {height} pixels; {_ASK} file that is not empty.")
    if max(width, height) > MAX_INPUT_SIDE_PX or width * height > MAX_INPUT_PIXELS:
        raise BadPicture(f"{what}: is {width} by {height} pixels; {_too_large()}")
    # The further pictures of an MPO, a JPEG as many phones write it, are views of the first and no animation.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise BadPicture(f"{what}: is animated; send one frame as PNG, JPEG or WebP.")


def _too_large() -> str:
    megapixels = MAX_INPUT_PIXELS // 2**20
    return f"too large; scale it down to at most {megapixels} megapixels and {MAX_INPUT_SIDE_PX} pixels a side."


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Scale 16-bit gray, which Pillow's own conversion may clip; the high byte is what Pillow keeps of 16-bit colour too."""
    if not picture.mode.startswith("I"):
        return picture
    wide = picture.convert("I")
    narrow = wide.point([level >> 8 for level in range(2**16)], "L")
    narrow.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    return narrow


def _is_of_one_color(picture: Image.Image, opaque: Image.Image) -> bool:
    if opaque.getbbox() is None:
        return True
    extremes = [channel.histogram(opaque) for channel in picture.convert("RGB").split()]
    return all(_spread(histogram) <= COLOR_SLACK for histogram in extremes)


def _spread(histogram: list[int]) -> int:
    used = [level for level, count in enumerate(histogram) if count]
    return used[-1] - used[0]
