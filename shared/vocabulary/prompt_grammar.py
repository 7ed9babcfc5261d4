"""The prompt grammar of AUTOMATIC1111: LoRA tags, AND, prompt editing over the steps, attention weights, BREAK.

Text in, texts and numbers out; `prompt_reader` makes tokens of them, `worker.diffusion.conditioning` tensors. A prompt goes
through the public functions in the order of this file. No text makes them raise or recurse; they take linear time.
"""

import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

MAX_WEIGHT = 1000.0  # ten thousand brackets would overflow a float
FACTORS = {"(": 1.1, "[": 1 / 1.1}

_TAG = re.compile(r"<(\w+):(?!>)")
_LORA_TAGS = frozenset({"lora", "lyco"})
_AND = re.compile(r"\bAND\b")
_BREAK = re.compile(r"\bBREAK\b")
_PART_WEIGHT = re.compile(r"\s*[-+]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)\s*")
_WHEN = re.compile(r"\s*[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\s*")
_EDITING = re.compile(r"(?:\\.|[^\\\[\]():|])+|[\[\]():|]|\\")
# Possessive, or a long run of digits or blanks would be tried from each of its ends.
_ATTENTION = re.compile(
    r"\\[()\[\]\\]?|[(\[]|:\s*+(?P<weight>[-+]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++))\s*+\)|[)\]]|[^\\()\[\]:]+|:"
)


@dataclass(frozen=True, slots=True)
class LoraTag:
    """A `<lora:…>` tag of a prompt: the name and the weights on the text encoder and on the UNet."""

    name: str
    text_weight: float
    unet_weight: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text under one attention weight."""

    text: str
    weight: float


def split_loras(text: str) -> tuple[str, tuple[LoraTag, ...]]:
    """Take every `<word:…>` tag out of a prompt; return what is left and the LoRAs among the tags.

    `<lora:name:te:unet>`, also with `te=` and `unet=`; `lyco` means the same. Hypernetworks and unknown tags act on nothing.
    """
    kept, tags, end = [], [], 0
    while (tag := _TAG.search(text, end)) and (close := text.find(">", tag.end())) >= 0:
        kept.append(text[end : tag.start()])
        end = close + 1
        if tag[1] in _LORA_TAGS:
            tags.append(_lora(text[tag.end() : close]))
    return "".join(kept) + text[end:], tuple(tag for tag in tags if tag.name)


def parts(text: str) -> tuple[tuple[str, float], ...]:
    """Split a prompt at `AND` into texts and their weights, which stand after a part's last colon."""
    return tuple(_weighted(part) for part in _AND.split(text))


def timeline(text: str, steps: int, *, first_pass_steps: int | None = None) -> Iterator[tuple[int, str]]:
    """Unfold `[from:to:when]`, `[to:when]`, `[from::when]` and `[a|b]` into (last step of the text, text), steps counted from 1.

    Texts are made one by one, so that a reader may stop at one that is too much.

    `when` counts steps, or is a share of them if it has a point. In the second pass of hires fix it counts on from the first:
    `first_pass_steps` are over, and shares begin at 1.0. Text that the grammar does not cover is taken literally as a whole.
    """
    editing = _Editing(steps, first_pass_steps)
    tree = editing.parse(text)
    if tree is None:
        yield steps, text
        return
    for step in sorted(editing.changes):
        yield step, _render(tree, step)


def segments(text: str) -> tuple[tuple[Segment, ...], ...]:
    """Read attention weights: `(a)` `[a]` `(a:1.2)` and escaped brackets. One tuple of segments for each stretch between BREAKs.

    Unlike A1111's, a BREAK breaks inside brackets too.
    """
    pieces, kinds = _attention(text)
    weights = [_clamped(a * b) for a, b in zip(*(_products(len(pieces), spans) for spans in kinds), strict=True)]
    stretches: list[list[tuple[str, float]]] = [[]]
    for piece, weight in zip(pieces, weights, strict=True):
        if piece is None:
            stretches.append([])
        elif piece:
            stretches[-1].append((piece, weight))
    merged = (groupby(stretch, key=itemgetter(1)) for stretch in stretches)
    return tuple(tuple(Segment("".join(piece for piece, _ in run), weight) for weight, run in runs) for runs in merged)


def _lora(arguments: str) -> LoraTag:
    read = [argument.partition("=") for argument in arguments.split(":")]
    named = {key.strip(): value for key, equals, value in read if equals}
    name, te, unet = [*(value for value, equals, _ in read if not equals), "", "", ""][:3]
    text_weight = _number(named.get("te", te), default=_number(te, default=1.0))
    unet_weight = _number(named.get("unet", unet), default=_number(unet, default=text_weight))
    return LoraTag(name.strip(), text_weight, unet_weight)


def _number(text: str, *, default: float) -> float:
    return _clamped(float(text)) if _WHEN.fullmatch(text) else default


def _clamped(weight: float) -> float:
    return min(max(weight, -MAX_WEIGHT), MAX_WEIGHT)


def _weighted(part: str) -> tuple[str, float]:
    head, colon, tail = part.rpartition(":")
    if colon and _PART_WEIGHT.fullmatch(tail):
        return head.rstrip(), _clamped(float(tail))
    return part.rstrip(), 1.0


@dataclass(frozen=True, slots=True)
class _Choice:
    """`[before:after:when]`, or `[a|b|c]` if it has no last step."""

    options: "list[list[_Node]]"
    last_step: int | None = None

    def at(self, step: int) -> "list[_Node]":
        index = (step - 1) % len(self.options) if self.last_step is None else step > self.last_step
        return self.options[index]


_Node = str | list["_Node"] | _Choice  # nested lists, because copying them into each other would take quadratic time


@dataclass(slots=True)
class _Group:
    """A bracket that is open, the fields in it so far and the separators between them."""

    opener: str
    fields: list[list[_Node]] = field(default_factory=lambda: [[]])
    separators: str = ""

    def as_text(self) -> list[_Node]:
        nodes: list[_Node] = [self.opener, self.fields[0]]
        for separator, content in zip(self.separators, self.fields[1:], strict=True):
            nodes += [separator, content]
        return nodes


class _Editing:
    """Parser of prompt editing: one pass over the tokens with a stack of open brackets.

    For 10 steps, `a [cat:dog:0.4]` becomes the tree `["a ", _Choice([["cat"], ["dog"]], last_step=4)]`, and `changes` {4, 10}:
    the last steps of the texts "a cat" and "a dog". `[` opens a `_Group`, each `:` starts its next field, and `]` closes it: the
    fields "cat", "dog", "0.4" with the separators "::" mean a switch.

    A closing bracket whose group means nothing, as in `(a:b:c)`, turns all open groups into plain text. A `|` or a backslash that
    is then in no group turns the whole prompt into plain text.
    """

    def __init__(self, steps: int, first_pass_steps: int | None) -> None:
        self._steps = steps
        self._first_pass_steps = first_pass_steps
        self._root: list[_Node] = []
        self._open: list[_Group] = []
        self.changes = {steps}

    def parse(self, text: str) -> list[_Node] | None:
        """Return the text as a sequence of nodes; None when it is outside the grammar."""
        is_covered = all(self._take(token[0]) for token in _EDITING.finditer(text))
        return self._root if is_covered and self._flatten() else None

    def _take(self, token: str) -> bool:
        """Take one token. False when no reading of the text is possible: a bar or a backslash that belongs to nothing."""
        if token in ("(", "["):
            self._open.append(_Group(token))
        elif token in (")", "]"):
            return self._close(token)
        elif token in (":", "|") and self._open:
            self._open[-1].separators += token
            self._open[-1].fields.append([])
        else:
            self._append(token)
            return token not in ("|", "\\")
        return True

    def _append(self, node: _Node) -> None:
        (self._open[-1].fields[-1] if self._open else self._root).append(node)

    def _close(self, bracket: str) -> bool:
        node = self._node(self._open[-1], bracket) if self._open else None
        if node is None:
            is_covered = self._flatten()
            self._root.append(bracket)
            return is_covered
        self._open.pop()
        self._append(node)
        return True

    def _node(self, group: _Group, bracket: str) -> _Node | None:
        """Return what a group means that is closed by `bracket`; None if it means nothing."""
        match group.opener + bracket, group.separators:
            case ("()", "" | ":") | ("[]", ""):
                return [*group.as_text(), bracket]
            case "[]", ":" | "::":
                return self._switch(*group.fields)
            case "[]", bars if set(bars) == {"|"}:
                self.changes.update(range(1, self._steps + 1))
                return _Choice(group.fields)
        return None

    def _switch(self, first: list[_Node], *others: list[_Node]) -> _Choice | None:
        *after, when = others
        if len(when) != 1 or not isinstance(when[0], str) or not _WHEN.fullmatch(when[0]):
            return None
        last_step = self._last_step(when[0])
        self.changes.add(last_step or self._steps)
        return _Choice([first, *after] if after else [[], first], last_step)

    def _last_step(self, when: str) -> int:
        value = float(when)
        if "." in when:
            value = (value - (self._first_pass_steps is not None)) * self._steps
        else:
            value -= self._first_pass_steps or 0
        return int(min(max(value, 0), self._steps))

    def _flatten(self) -> bool:
        """Make plain text of the groups that are open. False when that leaves a bar outside any group."""
        groups, self._open = self._open, []
        for group in groups:
            self._root += group.as_text()
        return not any("|" in group.separators for group in groups)


def _render(tree: list[_Node], step: int) -> str:
    """Return the text of one step."""
    texts: list[str] = []
    stack: list[_Node] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            texts.append(node)
        else:
            stack.extend(reversed(node if isinstance(node, list) else node.at(step)))
    return "".join(texts)


@dataclass(slots=True)
class _Span:
    """What lies between two brackets, as a range of pieces, and the factor they put on it."""

    start: int
    factor: float
    end: int = sys.maxsize


def _attention(text: str) -> tuple[list[str | None], tuple[list[_Span], list[_Span]]]:
    """Return the pieces of a text, None for a BREAK, and the spans of round and of square brackets in order of opening.

    Spans of one kind nest, but the two kinds may cross. A bracket left open reaches to the end.
    """
    pieces: list[str | None] = []
    spans: dict[str, list[_Span]] = {"(": [], "[": []}
    open_spans: dict[str, list[_Span]] = {"(": [], "[": []}
    for token in _ATTENTION.finditer(text):
        symbol, opener = token[0], {")": "(", "]": "["}.get(token[0][-1], "")
        if symbol in spans:
            spans[symbol].append(_Span(len(pieces), FACTORS[symbol]))
            open_spans[symbol].append(spans[symbol][-1])
        elif symbol.startswith("\\"):
            pieces.append(symbol[1:])
        elif opener and open_spans[opener]:
            span, weight = open_spans[opener].pop(), token["weight"]
            span.end = len(pieces)
            span.factor = span.factor if weight is None else _clamped(float(weight))
        else:
            pieces.extend(_at_breaks(symbol))
    return pieces, (spans["("], spans["["])


def _at_breaks(text: str) -> Iterator[str | None]:
    first, *others = _BREAK.split(text)
    yield first.rstrip() if others else first
    for index, other in enumerate(others, start=1):
        yield None
        yield other.strip() if index < len(others) else other.lstrip()


def _products(length: int, spans: Iterable[_Span]) -> list[float]:
    """Return for each of `length` pieces the product of the factors of the spans around it."""
    coming = deque(span for span in spans if span.end > span.start)
    around = [(length, 1.0)]
    products = []
    for position in range(length):
        while around[-1][0] <= position:
            around.pop()
        while coming and coming[0].start == position:
            span = coming.popleft()
            around.append((span.end, _clamped(around[-1][1] * span.factor)))
        products.append(around[-1][1])
    return products
