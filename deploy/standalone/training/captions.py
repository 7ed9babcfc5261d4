"""Captions of scenes for training, and the answers that a caption gives to a reader. Plain text; no tokens, no pictures.

A caption never names anything that is not in its scene, and the words of every caption are among `words()`.
"""

import random
from collections.abc import Mapping
from types import MappingProxyType

from deploy.standalone.training.shapes import COLOURS, SHAPES, Scene

UNKNOWN = "<unk>"  # stands for any word the checkpoint has never seen

# A word that is repeated is that much more likely.
SHAPE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "circle": ("circle",) * 5 + ("disc", "dot", "ball"),
        "square": ("square",) * 5 + ("box",),
        "triangle": ("triangle",),
        "star": ("star",),
        "ring": ("ring",) * 4 + ("donut",),
        "cross": ("cross",) * 4 + ("plus",),
        "heart": ("heart",),
    }
)
COLOUR_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType({c: (c,) for c in COLOURS} | {"gray": ("gray", "grey")})
SIZE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
)
SIZE_NAMED = MappingProxyType({"small": 0.8, "large": 0.6})  # how often a caption says the size
PLACE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {p: (p,) for p in ("left", "right", "top", "bottom")} | {"center": ("center", "middle", "centered")}
)
ASIDE = (" on the {place}", " at the {place}", " on the {place} side", ", {place}", " in the {place}")
IN_THE_MIDDLE = (" in the center", " in the middle", ", centered", " at the center")
ON_BACKGROUND = (
    "{thing} on {a_ground} background{where}",
    "{thing} on {a_ground} background{where}",
    "{thing}{where} on {a_ground} background",
    "{thing} on {ground} background{where}",
    "{thing}{where}, {ground} background",
    "{thing} against {a_ground} backdrop{where}",
    "{thing}{where} on {ground}",
    "{ground} background, {thing}{where}",
    "{a_ground} background with {thing}{where}",
    "{thing} in front of {a_ground} background{where}",
)
MEDIA = (
    "a photo of ",
    "a picture of ",
    "a drawing of ",
    "an image of ",
    "a painting of ",
    "an icon of ",
    "illustration of ",
    "a render of ",
)
FLOURISHES = (
    "high quality",
    "4k",
    "masterpiece",
    "detailed",
    "best quality",
    "sharp",
    "simple",
    "flat design",
    "vector art",
    "minimal",
    "clean",
    "digital art",
    "illustration",
)
NEGATIVES = (
    "blurry",
    "low quality",
    "worst quality",
    "bad",
    "ugly",
    "deformed",
    "noisy",
    "text",
    "watermark",
    "jpeg artifacts",
    "distorted",
    "lowres",
    "bad anatomy",
)
EMPTY_SHARE, NEGATIVE_SHARE = 0.15, 0.03
SHAPE_TOLD = MappingProxyType({word: shape for shape, options in SHAPE_WORDS.items() for word in options})

# How many answers each question of `told` has; 0 is always "not said".
ANSWERS = (1 + len(SHAPES), 1 + len(COLOURS), 1 + len(COLOURS), 3, 6)


def caption(scene: Scene, rng: random.Random) -> str:
    """Return a training caption of a scene; sometimes an empty one or a common negative prompt, which describe no scene."""
    luck = rng.random()
    if luck < EMPTY_SHARE:
        return ""
    if luck < EMPTY_SHARE + NEGATIVE_SHARE:
        return ", ".join(rng.sample(NEGATIVES, rng.randint(1, 5)))
    text = _sentence(scene, rng)
    if rng.random() < 0.25:
        text = rng.choice(MEDIA) + text
    if rng.random() < 0.12:
        text = ", ".join([text, *rng.sample(FLOURISHES, rng.randint(1, 3))])
    return _with_strange_words(text, rng) if rng.random() < 0.10 else text


def prompt(scene: Scene, rng: random.Random) -> str:
    """Return a prompt for a scene as a user would write it, which names everything that is not the default."""
    adjective = "" if scene.size == "medium" else f"{scene.size} "
    where = "" if scene.place == "center" else f" on the {scene.place}"
    thing = f"{with_article(f'{adjective}{scene.colour}')} {scene.shape}{where}"
    plain = f"{thing} on {with_article(scene.background)} background"
    terse = f"{adjective}{scene.colour} {scene.shape}{where}, {scene.background} background"
    return rng.choice((plain, f"a photo of {plain}", terse))


def tells_a_scene(text: str) -> bool:
    """Whether a caption describes a scene."""
    return any(word in SHAPE_TOLD for word in _bare(text))


def answers(scene: Scene, text: str) -> tuple[int, ...]:
    """Return the caption's answers on shape, colour, background, size and place, by the entries of `ANSWERS`."""
    if not tells_a_scene(text):
        return (0,) * len(ANSWERS)
    named = _bare(text)
    return (
        1 + SHAPES.index(scene.shape),
        1 + COLOURS.index(scene.colour),
        1 + COLOURS.index(scene.background) if scene.names_background else 0,
        _which(named, SIZE_WORDS),
        _which(named, PLACE_WORDS),
    )


def words() -> frozenset[str]:
    """Return every word and sign that a caption can contain."""
    tables = (SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, PLACE_WORDS)
    loose = [word for table in tables for options in table.values() for word in options]
    phrases = [*ASIDE, *IN_THE_MIDDLE, *ON_BACKGROUND, *MEDIA, *FLOURISHES, *NEGATIVES, *loose]
    vocabulary = {word for phrase in phrases for word in _bare(phrase) if "{" not in word}
    return frozenset(vocabulary | {"a", "an", "the", "one", ",", "."})


def with_article(phrase: str) -> str:
    """Put `a` or `an` before a phrase."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _sentence(scene: Scene, rng: random.Random) -> str:
    thing, where = _thing(scene, rng), _where(scene.place, rng)
    ground = rng.choice(COLOUR_WORDS[scene.background])
    if not scene.names_background:
        return thing + where
    pattern = rng.choice(ON_BACKGROUND)
    return pattern.format(thing=thing, where=where, ground=ground, a_ground=with_article(ground))


def _thing(scene: Scene, rng: random.Random) -> str:
    bare = f"{rng.choice(COLOUR_WORDS[scene.colour])} {rng.choice(SHAPE_WORDS[scene.shape])}"
    if scene.size in SIZE_NAMED and rng.random() < SIZE_NAMED[scene.size]:
        bare = f"{rng.choice(SIZE_WORDS[scene.size])} {bare}"
    luck = rng.random()
    if luck < 0.20:
        return bare
    if luck < 0.26:
        return f"one {bare}"
    return f"the {bare}" if luck < 0.32 else with_article(bare)


def _where(place: str, rng: random.Random) -> str:
    if place != "center":
        return rng.choice(ASIDE).format(place=place) if rng.random() < 0.85 else ""
    return rng.choice(IN_THE_MIDDLE) if rng.random() < 0.12 else ""


def _with_strange_words(text: str, rng: random.Random) -> str:
    pieces = text.split(" ")
    for _ in range(rng.randint(1, 3)):
        pieces.insert(rng.choice((0, len(pieces), rng.randint(0, len(pieces)))), UNKNOWN)
    return " ".join(pieces)


def _bare(text: str) -> list[str]:
    return text.replace(",", " ").replace("{", " {").replace("}", "} ").split()


def _which(named: list[str], table: Mapping[str, tuple[str, ...]]) -> int:
    """Return the number, from 1, of the table's entry that the words name; 0 for none."""
    return max((1 + i for i, options in enumerate(table.values()) for word in options if word in named), default=0)
