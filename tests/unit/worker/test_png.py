"""Our PNGs are what every reader takes for PNG."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from worker.slots import png


def picture(width: int, height: int, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def read(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as check:
        check.verify()  # checksums of all chunks
    opened = Image.open(io.BytesIO(data))
    opened.load()
    return opened


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 9))
def test_pixels_come_back_identical_at_any_size(width: int, height: int, seed: int) -> None:
    pixels = picture(width, height, seed)
    back = read(png.encode(pixels, {}))
    assert back.mode == "RGB"
    assert np.array_equal(np.asarray(back), pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2048), (2048, 1), (513, 511)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    pixels = picture(shape[1], shape[0])
    assert np.array_equal(np.asarray(read(png.encode(pixels, {}))), pixels)


def test_pixels_may_lie_in_memory_in_any_order() -> None:
    pixels = picture(40, 30)
    for view in (pixels[::-1], pixels[:, ::2], np.asfortranarray(pixels), pixels[..., ::-1]):
        assert np.array_equal(np.asarray(read(png.encode(view, {}))), view)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300))
def test_texts_come_back_identical(text: str) -> None:
    back = read(png.encode(picture(2, 2), {"parameters": text, "farm": "{}"}))
    assert back.info == {"parameters": text, "farm": "{}"}


def test_what_a_text_cannot_hold_is_replaced() -> None:
    back = read(png.encode(picture(2, 2), {"parameters": "a\0b\ud800c"}))
    assert back.info["parameters"] == "a\ufffdb\ufffdc"


@pytest.mark.parametrize("keyword", ["a", "Creation Time", "x" * 79, "Größe"])
def test_keywords_that_png_allows(keyword: str) -> None:
    assert read(png.encode(picture(2, 2), {keyword: "v"})).info == {keyword: "v"}


@pytest.mark.parametrize("keyword", ["", " a", "a ", "a  b", "x" * 80, "a\0b", "a\nb", "a\n", "日本"])
def test_keywords_that_png_forbids(keyword: str) -> None:
    with pytest.raises(ValueError, match="cannot be a PNG keyword"):
        png.encode(picture(2, 2), {keyword: "v"})


def test_the_same_picture_is_the_same_bytes() -> None:
    pixels, texts = picture(100, 100), {"parameters": "x"}
    assert png.encode(pixels, texts) == png.encode(pixels.copy(), dict(texts))


def test_a_smooth_picture_is_small() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 256, axis=1).repeat(3, axis=2)
    assert len(png.encode(ramp, {})) < ramp.size / 20
