"""What clients send as pictures: everything that is a still picture is read right, everything else is refused in words."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from shared.errors import BadPicture
from shared.files import pictures
from shared.files.pictures import PixelBudget

RED, BLUE = (255, 0, 0), (0, 0, 255)


def file(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format=kind, **options)
    return out.getvalue()


def flag() -> Image.Image:
    """Red above and blue below, no symmetry but that of a rectangle."""
    picture = Image.new("RGB", (24, 16), RED)
    picture.paste(BLUE, (0, 8, 24, 16))
    picture.paste("white", (0, 0, 6, 4))
    return picture


def animation(kind: str) -> bytes:
    return file(Image.new("RGB", (8, 8), RED), kind, save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)])


def png_of_size(width: int, height: int) -> bytes:
    """A valid header before far too few pixels: that it is called large and not truncated shows that nothing was decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def webp_of_size(width: int, height: int) -> bytes:
    canvas = bytes(4) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("GIF", {}), ("JPEG", {"quality": 95, "subsampling": 0})],
)
def test_every_format_is_read(kind: str, options: dict[str, Any]) -> None:
    picture = pictures.decode(file(flag(), kind, **options))
    assert (picture.mode, picture.size) == ("RGB", (24, 16))
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(flag())).max() <= (60 if kind == "JPEG" else 0)


BAD: list[tuple[str, Callable[[], bytes], str]] = [
    ("nothing", lambda: b"", "is empty"),
    ("text", lambda: b"a red circle", "not a picture that the farm can read; send a PNG"),
    ("svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    ("html", lambda: b"<!doctype html><title>404</title>", "not a picture"),
    ("tiff", lambda: file(flag(), "TIFF"), "not a picture"),
    ("bomb", lambda: png_of_size(60_000, 60_000), "too large; scale it down"),
    ("bomb between Pillow's limits", lambda: png_of_size(10_000, 10_000), "too large; scale it down"),
    ("just too large", lambda: png_of_size(4096, 4097), "is 4096 by 4097 pixels; too large"),
    ("too long", lambda: png_of_size(20_000, 1), "is 20000 by 1 pixels; too large"),
    ("webp bomb", lambda: webp_of_size(2**24, 2**7), "too large|corrupt"),
    ("animated gif", lambda: animation("GIF"), "is animated; send one frame"),
    ("animated webp", lambda: animation("WEBP"), "is animated; send one frame"),
    ("animated png", lambda: animation("PNG"), "is animated; send one frame"),
    ("half a header", lambda: file(flag())[:20], "header is corrupt|not a picture"),
    ("png without pixels", lambda: png_of_size(4000, 4000), "truncated or corrupt"),
    ("half a png", lambda: file(noise())[:2000], "truncated or corrupt"),
    ("half a jpeg", lambda: file(noise(), "JPEG")[:900], "truncated or corrupt"),
    ("half a webp", lambda: file(noise(), "WEBP")[:900], "truncated or corrupt|header is corrupt|not a picture"),
    ("half a bmp", lambda: file(noise(), "BMP")[:900], "truncated or corrupt"),
    ("half a gif", lambda: file(noise(), "GIF")[:1500], "truncated or corrupt"),
    ("flipped bytes", lambda: file(noise()).replace(b"IDAT", b"IDAT\xff\xff\xff", 1), "truncated or corrupt"),
]


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))


@pytest.mark.parametrize("read", [pictures.decode, pictures.decode_mask])
@pytest.mark.parametrize(("make", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_no_picture_is_refused_in_one_line(
    make: Callable[[], bytes], words: str, read: Callable[..., Image.Image]
) -> None:
    with pytest.raises(BadPicture, match=words) as refused:
        read(make(), what="field")
    assert str(refused.value).startswith("field: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation: int, kind: str) -> None:
    """The file is written as a camera would: the upright picture, turned back by what the tag says."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions
    stored = flag().transpose(Image.Transpose(undo[orientation])) if orientation > 1 else flag()
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = pictures.decode(file(stored, kind, exif=exif, quality=100, lossless=True))
    assert read.size == flag().size
    assert np.abs(np.asarray(read).astype(int) - np.asarray(flag())).mean() < 20
    assert pictures.decode_mask(file(stored, kind, exif=exif)).size == flag().size


def test_sixteen_bit_gray_keeps_its_range() -> None:
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    data = file(Image.fromarray(ramp))
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    levels = np.asarray(pictures.decode(data))
    assert np.array_equal(levels, np.repeat((ramp >> 8)[..., None], 3, axis=2))
    assert np.array_equal(np.asarray(pictures.decode_mask(data)), ramp >> 8)


def test_sixteen_bit_gray_is_turned_too() -> None:
    ramp = np.array([[0, 65535, 32768], [1, 2, 3]], np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.asarray(pictures.decode_mask(file(Image.fromarray(ramp), exif=exif)))
    assert np.array_equal(turned, np.rot90(ramp >> 8, -1))


def test_print_colours_become_rgb() -> None:
    data = file(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = pictures.decode(data).getpixel((8, 8))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    square = Image.new("L", (8, 8), 0)
    square.paste(255, (0, 0, 4, 8))
    read = pictures.decode(file(square.convert(mode)))
    assert np.array_equal(np.asarray(read), np.repeat(np.asarray(square)[..., None], 3, axis=2))


def test_what_is_transparent_is_white() -> None:
    picture = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.putpixel((2, 0), (0, 0, 255, 128))
    assert np.asarray(pictures.decode(file(picture))).tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 255]]]


def test_a_transparent_palette_colour_is_white() -> None:
    picture = flag().quantize(4)
    clear = picture.getpixel((10, 12))
    for kind in ("PNG", "GIF"):
        read = pictures.decode(file(picture, kind, transparency=clear))
        assert read.getpixel((10, 12)) == (255, 255, 255)
        assert read.getpixel((10, 2)) == RED


def test_a_phones_double_picture_is_no_animation() -> None:
    data = file(flag(), "MPO", save_all=True, append_images=[flag().resize((6, 4))])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert pictures.decode(data).size == flag().size


def strokes(color: tuple[int, int, int], ground: tuple[int, int, int, int]) -> bytes:
    picture = Image.new("RGBA", (8, 4), ground)
    picture.paste((*color, 255), (0, 0, 4, 4))
    return file(picture)


@pytest.mark.parametrize(
    "data",
    [
        strokes((255, 255, 255), (0, 0, 0, 255)),
        strokes((255, 255, 255), (0, 0, 0, 0)),
        strokes((255, 255, 255), (255, 255, 255, 0)),
        strokes((0, 0, 0), (0, 0, 0, 0)),
        strokes((200, 30, 90), (0, 0, 0, 0)),
    ],
    ids=["white on black", "white on clear", "white on clear white", "black on clear", "a colour on clear"],
)
def test_masks_are_understood_however_they_were_drawn(data: bytes) -> None:
    mask = pictures.decode_mask(data)
    assert mask.mode == "L"
    assert np.asarray(mask).tolist() == [[255] * 4 + [0] * 4] * 4


def test_a_mask_in_shades_is_read_by_them() -> None:
    picture = Image.new("RGBA", (3, 1), (255, 255, 255, 255))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    picture.putpixel((2, 0), (255, 255, 255, 0))
    assert np.asarray(pictures.decode_mask(file(picture))).tolist() == [[255, 0, 0]]
    soft = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    assert np.asarray(pictures.decode_mask(file(soft))).tolist() == [[0, 100, 255]]


def test_an_all_clear_mask_is_black() -> None:
    assert pictures.decode_mask(file(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))).getextrema() == (0, 0)


def test_base64_in_all_its_dresses() -> None:
    data = file(flag())
    text = base64.b64encode(data).decode()
    lines = "\r\n".join(text[at : at + 60] for at in range(0, len(text), 60))
    for dressed in (text, f" {lines}\n", f"data:image/png;base64,{text}", f" data:;base64,{lines}", text.rstrip("=")):
        assert pictures.from_base64(dressed, "init_image") == data
    assert pictures.from_base64(f"data:image/png;charset=utf-8;base64,{text}", "init_image") == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://example.com/cat.png", "only http and https URLs.*the file itself"),
        (" FILE:///etc/passwd", "only http and https"),
        ("data:image/svg+xml,<svg/>", "only http and https|not valid base64"),
        ("data:image/png;base64,", "is empty"),
        ("  ", "is empty"),
        ("", "is empty"),
        ("not base64!", "not valid base64"),
        ("ABCDE", "not valid base64"),
        ("été", "not valid base64"),
    ],
)
def test_what_is_not_base64_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadPicture, match=f"^mask_image: .*({words})"):
        pictures.from_base64(text, "mask_image")


def test_the_stored_form_is_the_same_picture_and_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    for picture in (
        pictures.decode(file(flag(), "JPEG", exif=exif, icc_profile=b"x" * 200)),
        Image.new("L", (5, 3), 7),
    ):
        data = pictures.to_png(picture)
        read = Image.open(io.BytesIO(data))
        assert (read.mode, read.info) == (picture.mode, {})
        assert np.array_equal(np.asarray(read), np.asarray(picture))
        assert b"where I live" not in data
        assert pictures.to_png(picture) == data


SEEDS = [file(noise(), kind) for kind in pictures.FORMATS] + [file(ImageOps.exif_transpose(flag()).quantize(4))]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6), st.data())
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_files_are_read_or_refused(seed: bytes, changes: list[tuple[int, int]], data: st.DataObject) -> None:
    damaged = bytearray(seed[: data.draw(st.integers(0, len(seed)))])
    for at, value in changes:
        if at < len(damaged):
            damaged[at] = value
    for read, mode in ((pictures.decode, "RGB"), (pictures.decode_mask, "L")):
        try:
            assert read(bytes(damaged)).mode == mode
        except BadPicture as refused:
            assert "image: " in str(refused)  # noqa: PT017 -- a refusal is the other right answer


def test_a_budget_is_for_so_many_pixels_and_no_more() -> None:
    budget, entered = PixelBudget(10), []

    def enter(pixels: int) -> None:
        with budget.reserve(pixels):
            entered.append(pixels)

    with budget.reserve(6):
        enter(4)
        late = [Thread(target=enter, args=[pixels]) for pixels in (5, 99)]  # 99 take all there is, and wait for it
        for thread in late:
            thread.start()
            thread.join(0.1)
        assert entered == [4]
    for thread in late:
        thread.join()
    assert sorted(entered) == [4, 5, 99]


def test_a_failure_gives_the_budget_back() -> None:
    budget = PixelBudget(10)
    with pytest.raises(ZeroDivisionError), budget.reserve(10):
        raise ZeroDivisionError
    with budget.reserve(10):
        pass


def test_pixels_are_counted_without_decoding() -> None:
    data = file(Image.new("RGB", (40, 30)))
    assert pictures.pixels_in(data[:60]) == 1200
    with pytest.raises(BadPicture, match="mask_image: not a picture"):
        pictures.pixels_in(b"nothing", what="mask_image")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_decoding_leaves_no_trace_of_the_file(mode: str) -> None:
    picture = pictures.decode(file(Image.new(mode, (8, 8)), dpi=(300, 300)))
    assert Image.open(io.BytesIO(pictures.to_png(picture))).info == {}
