"""Training pictures: one coloured shape on a coloured background. Knows no captions and no tensors.

A `Scene` is the ground truth of one picture. The pairs of colours and shapes in `HELD_OUT_*` are never shown in training, so that
they tell whether a checkpoint understands colour and shape apart from each other.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: Mapping[str, Rgb] = MappingProxyType(
    {
        "red": (222, 30, 36),
        "green": (34, 160, 60),
        "blue": (32, 72, 216),
        "yellow": (248, 220, 40),
        "orange": (246, 134, 28),
        "purple": (124, 44, 164),
        "pink": (250, 140, 190),
        "white": (248, 248, 248),
        "black": (14, 14, 14),
        "cyan": (40, 206, 220),
        "gray": (128, 128, 128),
    }
)
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
HELD_OUT_SHAPES = frozenset(
    {
        ("red", "star"),
        ("green", "heart"),
        ("blue", "triangle"),
        ("yellow", "ring"),
        ("orange", "square"),
        ("purple", "circle"),
        ("pink", "cross"),
        ("cyan", "star"),
    }
)
HELD_OUT_BACKGROUNDS = frozenset(
    {
        ("red", "yellow"),
        ("green", "pink"),
        ("blue", "orange"),
        ("yellow", "purple"),
        ("white", "green"),
        ("black", "cyan"),
        ("pink", "blue"),
        ("cyan", "red"),
    }
)
# Centres and radii are fractions of the picture's side.
PLACES: Mapping[str, Point] = MappingProxyType(
    {"center": (0.5, 0.5), "left": (0.27, 0.5), "right": (0.73, 0.5), "top": (0.5, 0.27), "bottom": (0.5, 0.73)}
)
RADII: Mapping[str, float] = MappingProxyType({"small": 0.15, "medium": 0.27, "large": 0.38})
HOLE = 0.56  # inner radius of a ring over its outer one
COLOUR_JITTER = 9.0  # steps of 255
PLACE_JITTER, RADIUS_JITTER = 0.018, 0.08
CLOSE_UPS = (2, 4, 8)  # how much larger the picture is of which a close-up shows a part


@dataclass(frozen=True, slots=True)
class Scene:
    """Content of one picture. `names_background`: its caption may name the background's colour."""

    shape: str
    colour: str
    background: str
    size: str
    place: str
    names_background: bool = True

    @property
    def is_held_out(self) -> bool:
        """Whether training never shows this pair of colours or of colour and shape."""
        return (self.colour, self.shape) in HELD_OUT_SHAPES or (self.colour, self.background) in HELD_OUT_BACKGROUNDS


@dataclass(frozen=True, slots=True)
class Figure:
    """A shape with its centre and radius, in fractions of the picture's side."""

    shape: str
    x: float = 0.5
    y: float = 0.5
    radius: float = RADII["medium"]


def dice(seed: int) -> random.Random:
    """Return a seeded random generator."""
    return random.Random(seed)  # noqa: S311 - drawing shapes is no secret


def random_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """Draw a random scene of training, or a held-out one."""
    while True:
        scene = _any_scene(rng)
        if scene.colour != scene.background and scene.is_held_out == held_out:
            return _with_size_and_place(scene, rng)


def figure_of(scene: Scene, *, zoom: float = 1.0) -> Figure:
    """Return the figure of a scene, without jitter."""
    x, y = PLACES[scene.place]
    return Figure(scene.shape, x, y, RADII[scene.size] * zoom)


def picture(scene: Scene, side_px: int, rng: random.Random) -> Image.Image:
    """Draw a scene with a little jitter in colours, place and size."""
    still = figure_of(scene, zoom=rng.uniform(1 - RADIUS_JITTER, 1 + RADIUS_JITTER))
    fill, background = _jittered(scene.colour, rng), _jittered(scene.background, rng)
    x, y = still.x + rng.gauss(0, PLACE_JITTER), still.y + rng.gauss(0, PLACE_JITTER)
    return draw(Figure(still.shape, x, y, still.radius), side_px, fill=fill, background=background)


def close_up(scene: Scene, side_px: int, rng: random.Random) -> Image.Image:
    """Draw a part of a scene 2 to 8 times larger: what pictures of 128 to 512 px look like locally."""
    zoom = rng.choice(CLOSE_UPS)
    fill, background = _jittered(scene.colour, rng), _jittered(scene.background, rng)
    x, y = (rng.uniform(0.5 - 0.3 * zoom, 0.5 + 0.3 * zoom) for _ in range(2))
    figure = Figure(scene.shape, x, y, zoom * RADII[scene.size] * rng.uniform(0.8, 1.2))
    return draw(figure, side_px, fill=fill, background=background, supersample=3)


def draw(figure: Figure, side_px: int, *, fill: Rgb, background: Rgb, supersample: int | None = None) -> Image.Image:
    """Draw a figure with smooth edges, by drawing it larger and shrinking it."""
    factor = supersample or _supersample(side_px)
    side = side_px * factor
    image = Image.new("RGB", (side, side), background)
    pen = ImageDraw.Draw(image)
    if figure.shape in ("circle", "ring"):
        pen.ellipse(_box(figure, side), fill=fill)
        if figure.shape == "ring":
            pen.ellipse(_box(figure, side, HOLE), fill=background)
    else:
        pen.polygon([(x * side, y * side) for x, y in outline(figure)], fill=fill)
    return image.reduce(factor)


def outline(figure: Figure) -> list[Point]:
    """Return the corners of any shape but circle and ring."""
    corners = _CORNERS[figure.shape]()
    return [(figure.x + dx * figure.radius, figure.y + dy * figure.radius) for dx, dy in corners]


def _any_scene(rng: random.Random) -> Scene:
    shape, colour, background = rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(COLOURS)
    names_background = rng.random() < 0.8
    if not names_background and rng.random() < 0.9:  # an unnamed background is nearly always plain paper
        background = "black" if colour == "white" else "white"
    return Scene(shape, colour, background, "medium", "center", names_background)


def _with_size_and_place(scene: Scene, rng: random.Random) -> Scene:
    size = rng.choice(("small", "medium", "medium", "large"))
    place = rng.choice(("center",) * 6 + ("left", "right", "top", "bottom"))
    if place != "center" and size == "large":  # it would leave the picture
        size = "medium"
    return Scene(scene.shape, scene.colour, scene.background, size, place, scene.names_background)


def _jittered(colour: str, rng: random.Random) -> Rgb:
    red, green, blue = (max(0, min(255, int(v + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER)))) for v in PALETTE[colour])
    return red, green, blue


def _supersample(side_px: int) -> int:
    if side_px <= 64:
        return 4
    return 3 if side_px <= 128 else 2


def _box(figure: Figure, side: int, share: float = 1.0) -> tuple[float, float, float, float]:
    x, y, r = figure.x * side, figure.y * side, figure.radius * side * share
    return x - r, y - r, x + r, y + r


def _square() -> list[Point]:
    a = 0.86
    return [(-a, -a), (a, -a), (a, a), (-a, a)]


def _triangle() -> list[Point]:
    return [(0.0, -1.0), (0.98, 0.78), (-0.98, 0.78)]


def _star() -> list[Point]:
    rays = [(1.08 if i % 2 == 0 else 0.46, i * math.pi / 5) for i in range(10)]
    return [(length * math.sin(angle), -length * math.cos(angle)) for length, angle in rays]


def _cross() -> list[Point]:
    w = 0.34  # half the width of an arm
    arm = [(-w, -1.0), (w, -1.0), (w, -w)]
    turned = [arm]
    for _ in range(3):
        turned.append([(-y, x) for x, y in turned[-1]])
    return [corner for quarter in turned for corner in quarter]


def _heart() -> list[Point]:
    return [_heart_point(2 * math.pi * i / 48) for i in range(48)]


def _heart_point(t: float) -> Point:
    x = 16 * math.sin(t) ** 3 / 16.5
    y = (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 1.5) / 16
    return x, -y


_CORNERS = MappingProxyType({"square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "heart": _heart})
