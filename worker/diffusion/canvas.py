"""Image processing around img2img and inpainting, by A1111's rules: resize, crop to the mask, fill, composite the result.

Pillow and numpy only. Outside the blurred mask the composite equals the picture bit for bit.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from shared.vocabulary.params import MaskFill, ResizeMode

Pixels = NDArray[np.uint8]  # (height, width, 3)
Mask = NDArray[np.float32]  # (height, width), 1 where the picture is painted anew
Box = tuple[int, int, int, int]  # left, top, right, bottom

NOTHING = np.float32(1e-6)  # a weight not to divide by
GRAY = 127.5  # what masked pixels become where nothing is left to take colours from


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Where a result is composited: into `box` of `picture` (H, W, 3), with `share` (H, W) of 255 as its opacity."""

    picture: Pixels
    share: NDArray[np.uint8]
    box: Box


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """Input of an image-to-image render. `mask` and `frame` are None when the whole picture is painted anew."""

    pixels: Pixels
    mask: Mask | None
    frame: Frame | None


def prepare(
    init: Image.Image,
    mask: Image.Image | None,
    *,
    width: int,
    height: int,
    resize_mode: ResizeMode,
    mask_blur: int = 0,
    mask_invert: bool = False,
    only_masked: bool = False,
    padding: int = 0,
    fill: MaskFill = MaskFill.ORIGINAL,
) -> Canvas:
    """Fit an RGB picture and its L mask to `width` by `height`; `mask_blur` (sigma) and `padding` are pixels of the picture.

    A mask of another size is stretched to the picture's. `only_masked` cuts out what the mask covers, with its padding and
    widened to the shape that is rendered, and the result is as large as `init`. A mask that covers nothing changes nothing,
    with `only_masked` too, where A1111 would paint everything anew.
    """
    if mask is None:
        return Canvas(_array(_fitted(init, width, height, resize_mode)), None, None)
    soft = _softened(mask, init.size, mask_blur, invert=mask_invert)
    if only_masked:
        box = _region(soft, padding, width / height)
        pixels, painted = (_fitted(whole.crop(box), width, height, ResizeMode.FILL) for whole in (init, soft))
        frame = Frame(_array(init), _array(soft), box)
    else:
        pixels, painted = (_fitted(whole, width, height, resize_mode) for whole in (init, soft))
        # Twice the mask, so that what is at least half painted shows in full.
        frame = Frame(_array(pixels), _array(ImageChops.add(painted, painted)), (0, 0, width, height))
    share = _array(painted).astype(np.float32) / np.float32(255)
    return Canvas(_array(pixels) if fill is MaskFill.ORIGINAL else _surrounded(_array(pixels), share), share, frame)


def finish(canvas: Canvas, pixels: Pixels) -> Pixels:
    """Composite a result (height, width, 3) into the whole picture, scaled to its box."""
    frame = canvas.frame
    if frame is None:
        return pixels
    left, top, right, bottom = frame.box
    whole = frame.picture.copy()
    inside = whole[top:bottom, left:right]
    fresh = _fitted(Image.fromarray(pixels), right - left, bottom - top, ResizeMode.CROP)
    share = Image.fromarray(frame.share[top:bottom, left:right])
    inside[:] = _array(Image.composite(fresh, Image.fromarray(inside), share))
    return whole


def upscale(pixels: Pixels, factor: float) -> Pixels:
    """Enlarge by Lanczos; sides are rounded to whole pixels."""
    height, width = pixels.shape[:2]
    return resize(pixels, round(width * factor), round(height * factor))


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """Stretch to `width` by `height` by Lanczos; proportions may change."""
    return _array(_fitted(Image.fromarray(pixels), width, height, ResizeMode.STRETCH))


def _softened(mask: Image.Image, size: tuple[int, int], blur: int, *, invert: bool) -> Image.Image:
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    if invert:
        mask = ImageChops.invert(mask)
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def _region(mask: Image.Image, padding: int, aspect: float) -> Box:
    """Return the mask's bounding box, padded, and widened within the picture towards width / height = `aspect`.

    An empty mask gives the whole picture.
    """
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    left, right = max(left - padding, 0), min(right + padding, mask.width)
    top, bottom = max(top - padding, 0), min(bottom + padding, mask.height)
    if (right - left) / (bottom - top) < aspect:
        left, right = _widened(left, right, round((bottom - top) * aspect), mask.width)
    else:
        top, bottom = _widened(top, bottom, round((right - left) / aspect), mask.height)
    return left, top, right, bottom


def _widened(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """Widen a stretch evenly to `length`, shifted and cut to stay in 0 … `limit`."""
    length = min(max(length, end - start), limit)
    start = start - (length - (end - start)) // 2
    start = min(max(start, 0), limit - length)
    return start, start + length


def _fitted(picture: Image.Image, width: int, height: int, mode: ResizeMode) -> Image.Image:
    """Resize. STRETCH ignores proportions, CROP cuts off the longer side, FILL repeats the edges along the shorter."""
    if picture.size == (width, height):
        return picture
    # A mask must not ring: Lanczos would paint beyond its edge.
    method = Image.Resampling.BILINEAR if picture.mode == "L" else Image.Resampling.LANCZOS
    if mode is ResizeMode.FILL:
        return _filled(picture, width, height, method)
    box = _middle(picture.size, width / height) if mode is ResizeMode.CROP else None
    return picture.resize((width, height), method, box=box)


def _middle(size: tuple[int, int], aspect: float) -> tuple[float, float, float, float]:
    """Return the largest box of an aspect in the middle of a picture."""
    width, height = min(size[0], size[1] * aspect), min(size[1], size[0] / aspect)
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height


def _filled(picture: Image.Image, width: int, height: int, method: Image.Resampling) -> Image.Image:
    scale = min(width / picture.width, height / picture.height)
    inner = min(max(round(picture.width * scale), 1), width), min(max(round(picture.height * scale), 1), height)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    around = [(top, height - inner[1] - top), (left, width - inner[0] - left), (0, 0)]
    pixels = _array(picture.resize(inner, method))
    return Image.fromarray(np.pad(pixels, around[: pixels.ndim], mode="edge"))


def _surrounded(pixels: Pixels, mask: Mask) -> Pixels:
    """Fill the masked region with smooth colours of its surroundings."""
    coverage = 1 - mask[..., None]
    colors = _diffused(pixels.astype(np.float32), coverage)
    return (pixels * coverage + colors * mask[..., None]).round().astype(np.uint8)


def _diffused(colors: NDArray[Any], coverage: NDArray[Any]) -> NDArray[Any]:
    """Complete colours (h, w, 3) that are known to a share of `coverage` (h, w, 1), 0 … 1, all float32.

    Where nothing is known, means over ever coarser squares fill in: the pull-push of Gortler et al., The Lumigraph, 1996.
    """
    height, width = coverage.shape[:2]
    if height == width == 1:
        return np.where(coverage > 0, colors, GRAY).astype(np.float32)
    weight = _halved(coverage)
    means = _halved(colors * coverage) / np.maximum(weight, NOTHING)
    coarse = _diffused(means, np.minimum(4 * weight, 1))
    smooth = np.stack(
        [
            np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR))
            for channel in np.moveaxis(coarse, 2, 0)
        ],
        axis=2,
    )
    return colors * coverage + smooth * (1 - coverage)


def _halved(values: NDArray[Any]) -> NDArray[Any]:
    """Return the means of squares of two by two; an odd last row or column counts twice."""
    height, width = values.shape[:2]
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    means: NDArray[Any] = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, -1).mean((1, 3))
    return means


def _array(picture: Image.Image) -> NDArray[np.uint8]:
    return np.array(picture)
