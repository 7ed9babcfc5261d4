"""Pictures around the latents: fitted as asked, cut to the mask, and untouched where nothing was to be painted."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.vocabulary.params import MaskFill, ResizeMode
from worker.diffusion import canvas
from worker.diffusion.canvas import Canvas, Pixels

SIDES = st.integers(1, 90)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), np.uint8))


def mask_of(width: int, height: int, *box: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    if box:
        mask.paste(255, box)  # type: ignore[arg-type]
    return mask


def prepared(init: Image.Image, mask: Image.Image | None, width: int = 64, height: int = 64, **how: Any) -> Canvas:
    return canvas.prepare(init, mask, width=width, height=height, **{"resize_mode": ResizeMode.STRETCH, **how})


def painted(on: Canvas, level: int = 200) -> Pixels:
    return canvas.finish(on, np.full_like(on.pixels, level))


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(SIDES, SIDES),
    mask_size=st.tuples(SIDES, SIDES) | st.none(),
    target=st.tuples(SIDES, SIDES),
    data=st.data(),
    resize_mode=st.sampled_from(ResizeMode),
    fill=st.sampled_from(MaskFill),
    only_masked=st.booleans(),
    mask_invert=st.booleans(),
    mask_blur=st.integers(0, 12),
    padding=st.integers(0, 40),
)
def test_outside_the_mask_every_pixel_stays(
    size: tuple[int, int],
    mask_size: tuple[int, int] | None,
    target: tuple[int, int],
    data: st.DataObject,
    *,
    resize_mode: ResizeMode,
    fill: MaskFill,
    only_masked: bool,
    mask_invert: bool,
    mask_blur: int,
    padding: int,
) -> None:
    """Whatever the sizes. What must stay is computed apart: white that is dilated by what a blur can reach."""
    across, down = mask_size or size
    left, right = sorted((data.draw(st.integers(0, across)), data.draw(st.integers(0, across))))
    top, bottom = sorted((data.draw(st.integers(0, down)), data.draw(st.integers(0, down))))
    init = picture(*size)
    mask = mask_of(across, down, left, top, right, bottom)
    (width, height) = target
    how: dict[str, Any] = {"resize_mode": resize_mode, "fill": fill, "padding": padding}
    how |= {"only_masked": only_masked, "mask_invert": mask_invert, "mask_blur": mask_blur}
    on = prepared(init, mask, width, height, **how)
    assert on.pixels.shape == (height, width, 3)
    assert on.pixels.dtype == np.uint8
    assert on.mask is not None
    assert on.mask.shape == (height, width)
    assert on.mask.dtype == np.float32
    assert 0 <= on.mask.min() <= on.mask.max() <= 1
    whole = painted(on)
    before = np.asarray(init) if only_masked else prepared(init, None, width, height, resize_mode=resize_mode).pixels
    assert whole.shape == before.shape
    if only_masked:
        assert on.frame is not None
        assert np.array_equal(whole[on.frame.share == 0], before[on.frame.share == 0])
    if only_masked and mask.size == init.size:
        white = np.asarray(mask) == (0 if mask_invert else 255)
        stays = ~reached(white, 4 * mask_blur)
        assert np.array_equal(whole[stays], before[stays])
    elif not only_masked:
        assert np.array_equal(whole[on.mask == 0], before[on.mask == 0])
        assert (whole[on.mask >= 0.51] == 200).all()
    if not (np.asarray(mask) == (0 if mask_invert else 255)).any():
        assert np.array_equal(whole, before)


def reached(white: Any, distance: int) -> Any:
    """Grow the white by a distance along both axes."""
    grown = white.copy()
    for axis in (0, 1):
        source = grown.copy()
        for shift in range(1, min(distance, white.shape[axis] - 1) + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(shift, None), slice(None, -shift)
            grown[tuple(ahead)] |= source[tuple(behind)]
            grown[tuple(behind)] |= source[tuple(ahead)]
    return grown


def test_without_a_mask_all_is_new() -> None:
    on = prepared(picture(50, 40), None)
    assert on.mask is None
    result = np.full((64, 64, 3), 9, np.uint8)
    assert canvas.finish(on, result) is result


@pytest.mark.parametrize("mode", ResizeMode)
def test_a_picture_of_the_right_size_is_not_touched(mode: ResizeMode) -> None:
    init = picture(64, 64)
    assert np.array_equal(prepared(init, None, resize_mode=mode).pixels, np.asarray(init))


def test_resize_modes() -> None:
    """A wide picture, red, green and blue from left to right, brought to a square."""
    init = Image.new("RGB", (192, 64))
    for index, color in enumerate(("red", "lime", "blue")):
        init.paste(color, (index * 64, 0, index * 64 + 64, 64))
    stretched, cropped, filled = (
        Image.fromarray(prepared(init, None, resize_mode=mode).pixels)
        for mode in (ResizeMode.STRETCH, ResizeMode.CROP, ResizeMode.FILL)
    )
    assert [stretched.getpixel((x, 1)) for x in (5, 32, 58)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert [cropped.getpixel((x, 60)) for x in (5, 32, 58)] == [(0, 255, 0)] * 3
    assert [filled.getpixel((x, 0)) for x in (5, 32, 58)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_fill_repeats_the_edges() -> None:
    init = Image.new("RGB", (60, 20), "red")
    init.paste("blue", (0, 10, 60, 20))
    pixels = prepared(init, None, 60, 60, resize_mode=ResizeMode.FILL).pixels
    assert (pixels[:29] == (255, 0, 0)).all()
    assert (pixels[31:] == (0, 0, 255)).all()


def test_extreme_shapes_cost_no_more_than_their_target() -> None:
    init = picture(8192, 1)
    for mode in ResizeMode:
        assert prepared(init, mask_of(8192, 1, 5, 0, 6, 1), resize_mode=mode, only_masked=True).pixels.shape == (
            64,
            64,
            3,
        )


def test_only_masked_renders_the_mask_large_and_puts_it_back_small() -> None:
    init = picture(200, 100)
    on = prepared(init, mask_of(200, 100, 80, 40, 100, 60), only_masked=True, padding=6)
    assert on.frame is not None
    assert on.frame.box == (74, 34, 106, 66)
    assert on.mask is not None
    assert on.mask.mean() == pytest.approx((20 / 32) ** 2, rel=0.02)
    whole = painted(on)
    assert whole.shape == (100, 200, 3)
    changed = (whole != np.asarray(init)).any(axis=2)
    assert changed[40:60, 80:100].mean() > 0.9
    changed[40:60, 80:100] = False
    assert not changed.any()


@pytest.mark.parametrize(
    ("mask", "target", "box"),
    [
        ((90, 40, 110, 60), (128, 64), (80, 40, 120, 60)),
        ((90, 40, 110, 60), (64, 128), (90, 30, 110, 70)),
        ((0, 0, 20, 20), (128, 64), (0, 0, 40, 20)),
        ((180, 80, 200, 100), (128, 64), (160, 80, 200, 100)),
        ((0, 0, 200, 20), (64, 64), (0, 0, 200, 100)),
        ((0, 0, 200, 100), (64, 64), (0, 0, 200, 100)),
    ],
)
def test_the_region_takes_the_shape_that_is_rendered(
    mask: tuple[int, ...], target: tuple[int, int], box: tuple[int, ...]
) -> None:
    on = prepared(picture(200, 100), mask_of(200, 100, *mask), *target, only_masked=True)
    assert on.frame is not None
    assert on.frame.box == box


def test_a_region_that_cannot_take_the_shape_is_put_back_where_it_was() -> None:
    """The bars that fill it up to the shape are cut off again: painting back the very pixels changes next to nothing."""
    ramp = np.linspace(0, 255, 200).astype(np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    on = prepared(Image.fromarray(ramp), mask_of(200, 40, 0, 0, 200, 40), 128, 128, only_masked=True)
    whole = canvas.finish(on, on.pixels)
    assert np.abs(whole.astype(int) - ramp).max() <= 8


def test_inverted_the_rest_is_painted() -> None:
    init = picture(64, 64)
    whole = painted(prepared(init, mask_of(64, 64, 16, 16, 48, 48), mask_invert=True))
    assert np.array_equal(whole[16:48, 16:48], np.asarray(init)[16:48, 16:48])
    assert (whole[:16] == 200).all()


def test_a_blurred_mask_has_soft_edges() -> None:
    on = prepared(picture(64, 64), mask_of(64, 64, 0, 0, 32, 64), mask_blur=4)
    assert on.mask is not None
    row = on.mask[32]
    assert all(before >= after for before, after in pairwise(row))
    assert row[0] == 1
    assert row[-1] == 0
    assert row[36] == pytest.approx(0.16, abs=0.04)  # a Gaussian's tail a little more than one sigma away


@pytest.mark.parametrize("only_masked", [True, False])
@pytest.mark.parametrize("fill", MaskFill)
def test_a_mask_that_covers_nothing_changes_nothing(fill: MaskFill, *, only_masked: bool) -> None:
    init = picture(64, 64)
    on = prepared(init, mask_of(64, 64), only_masked=only_masked, mask_blur=4, fill=fill)
    assert on.mask is not None
    assert not on.mask.any()
    assert np.array_equal(painted(on), np.asarray(init))


def test_a_mask_of_another_size_covers_the_same_part() -> None:
    on = prepared(picture(64, 64), mask_of(16, 32, 8, 0, 16, 32))
    assert on.mask is not None
    assert on.mask[:, :28].max() == 0
    assert on.mask[:, 36:].min() == 1


def test_fill_takes_colours_from_around_and_leaves_none_of_what_was_there() -> None:
    init = Image.new("RGB", (64, 64), (20, 60, 220))
    init.paste((255, 0, 0), (24, 24, 40, 40))
    on = prepared(init, mask_of(64, 64, 20, 20, 44, 44), fill=MaskFill.FILL)
    assert np.abs(on.pixels.astype(int) - (20, 60, 220)).max() <= 1
    kept = prepared(init, mask_of(64, 64, 20, 20, 44, 44), fill=MaskFill.ORIGINAL)
    assert np.array_equal(kept.pixels, np.asarray(init))


def test_fill_blends_from_side_to_side() -> None:
    init = Image.new("RGB", (64, 64), "black")
    init.paste("white", (32, 0, 64, 64))
    levels = prepared(init, mask_of(64, 64, 16, 0, 48, 64), fill=MaskFill.FILL).pixels[32, 16:48, 0].astype(int)
    assert levels[0] < 60
    assert levels[-1] > 195
    assert max(abs(after - before) for before, after in pairwise(levels)) < 40


def test_fill_of_all_is_gray() -> None:
    on = prepared(picture(64, 64), mask_of(64, 64, 0, 0, 64, 64), fill=MaskFill.FILL)
    assert (on.pixels == 128).all()


def test_finish_takes_a_result_of_a_second_pass() -> None:
    init = picture(64, 64)
    on = prepared(init, mask_of(64, 64, 0, 0, 32, 64))
    whole = canvas.finish(on, np.full((128, 128, 3), 200, np.uint8))
    assert (whole[:, :32] == 200).all()
    assert np.array_equal(whole[:, 32:], np.asarray(init)[:, 32:])


def test_lanczos_scales() -> None:
    flat = np.full((10, 20, 3), 77, np.uint8)
    assert canvas.upscale(flat, 1.55).shape == (16, 31, 3)
    assert (canvas.resize(flat, 40, 8) == 77).all()
    assert canvas.resize(flat, 40, 8).shape == (8, 40, 3)
