"""Measurement of a picture: its colours, the class of its shape and its position. Reads pixels; renders nothing.

Pictures are judged at 64x64, at which the fine raggedness of an outline does not show.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy.standalone.training.shapes import COLOURS, PALETTE, PLACES, SHAPES, Figure, Rgb, Scene, draw, figure_of

SIDE_PX = 64
FIT_PX = 48  # shapes are compared after being cut out and stretched to this
BORDER_PX = 4
UNLIKE_BACKGROUND = 60.0  # distance in RGB
FEWEST_PIXELS = 20
FEWEST_PIXELS_OF_ONE_PIECE, CRUMBS = 40, 0.1
OFF_PLACE = 0.13  # of the side
WHITE: Rgb = (255, 255, 255)
BLACK: Rgb = (0, 0, 0)

Mask = NDArray[np.bool_]
Pixels = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on a picture by criteria.

    `at_place` is the colour where training pictures have the shape; `overlap` is the intersection over union with the true
    outline, shifted and scaled to fit.
    """

    at_place: bool
    background: bool
    colour: bool = False
    shape: bool = False
    one_piece: bool = False
    position: bool = False
    overlap: float = 0.0

    @property
    def colours(self) -> bool:
        """Whether shape and background both have their colour."""
        return self.colour and self.background

    @property
    def all(self) -> bool:
        """Whether colours and the class of the shape are right."""
        return self.colours and self.shape


def judge(image: Image.Image, scene: Scene) -> Verdict:
    """Compare a picture with the scene that was asked for."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)).astype(np.float64)
    background = _background(pixels)
    at_place = pixels[mask(figure_of(scene, zoom=0.8), SIDE_PX)].mean(0)
    seen = np.sqrt(np.square(pixels - background).sum(-1)) > UNLIKE_BACKGROUND
    right_at_place, right_background = nearest(at_place) == scene.colour, nearest(background) == scene.background
    if seen.sum() <= FEWEST_PIXELS:
        return Verdict(right_at_place, right_background)
    overlaps = {shape: overlap(seen, shape) for shape in SHAPES}
    return Verdict(
        at_place=right_at_place,
        background=right_background,
        colour=nearest(np.median(pixels[seen], 0)) == scene.colour,
        shape=max(overlaps, key=overlaps.__getitem__) == scene.shape,
        one_piece=_is_one_piece(seen),
        position=_is_at(seen, scene.place),
        overlap=overlaps[scene.shape],
    )


def nearest(rgb: Pixels) -> str:
    """Return the name of the palette's colour that is nearest."""
    palette = np.array([PALETTE[colour] for colour in COLOURS], dtype=np.float64)
    return COLOURS[int(np.square(palette - rgb).sum(1).argmin())]


def mask(figure: Figure, side_px: int) -> Mask:
    """Return the mask of a figure's pixels."""
    drawn = draw(figure, side_px, fill=WHITE, background=BLACK, supersample=2)
    covered: Mask = np.asarray(drawn)[..., 0] > 127
    return covered


def overlap(seen: Mask, shape: str) -> float:
    """Return the intersection over union of a mask and the ideal shape, both stretched to the same box."""
    ideal, real = _stretched(mask(Figure(shape), 2 * SIDE_PX)), _stretched(seen)
    return float((ideal & real).sum() / (ideal | real).sum())


def _background(pixels: Pixels) -> Pixels:
    b = BORDER_PX
    border = (pixels[:b], pixels[-b:], pixels[:, :b], pixels[:, -b:])
    median: Pixels = np.median(np.concatenate([edge.reshape(-1, 3) for edge in border]), 0)
    return median


def _stretched(covered: Mask) -> Mask:
    rows, columns = np.where(covered)
    cut = covered[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    stretched = Image.fromarray((cut * 255).astype(np.uint8)).resize((FIT_PX, FIT_PX))
    return np.asarray(stretched) > 127


def _is_one_piece(seen: Mask) -> bool:
    """Whether nearly all pixels that differ from the background are connected."""
    areas = sorted(_areas(seen), reverse=True)
    return areas[0] > FEWEST_PIXELS_OF_ONE_PIECE and sum(areas[1:]) < CRUMBS * areas[0]


def _areas(seen: Mask) -> Iterator[int]:
    left = {(int(row), int(column)) for row, column in zip(*np.where(seen), strict=True)}
    while left:
        edge, area = [left.pop()], 0
        while edge:
            row, column = edge.pop()
            area += 1
            around = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)} & left
            left -= around
            edge.extend(around)
        yield area


def _is_at(seen: Mask, place: str) -> bool:
    rows, columns = np.where(seen)
    x, y = ((some.min() + some.max() + 1) / (2 * SIDE_PX) for some in (columns, rows))
    return bool(abs(x - PLACES[place][0]) < OFF_PLACE and abs(y - PLACES[place][1]) < OFF_PLACE)
