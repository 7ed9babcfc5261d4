"""The prompt grammar against the examples of A1111's documentation and runs, and against hostile text."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.vocabulary import prompt_grammar
from shared.vocabulary.prompt_grammar import LoraTag, Segment

WORDS = ["AND", "BREAK", "<lora:", "[a:b:", ":0.5]", *"ab ,:|()[]<>\\=.123\n"]
SYNTAX = st.lists(st.sampled_from(WORDS), max_size=40).map("".join)
ANY = st.one_of(SYNTAX, st.text(max_size=60))
PLAIN = st.text(st.characters(exclude_characters="\\()[]:|<>", exclude_categories=["Cs"]), max_size=80)


def weights(text: str) -> list[tuple[str, Any]]:
    """The segments of a text without BREAK."""
    (stretch,) = prompt_grammar.segments(text)
    return [(segment.text, pytest.approx(segment.weight, abs=1e-9)) for segment in stretch]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (cat:1.2) [dog] ((big))", [("a ", 1), ("cat", 1.2), (" ", 1), ("dog", 1 / 1.1), (" ", 1), ("big", 1.21)]),
        ("(w)", [("w", 1.1)]),
        ("((w))", [("w", 1.21)]),
        ("[w]", [("w", 1 / 1.1)]),
        ("[[w]]", [("w", 1 / 1.21)]),
        ("(w:1.3)", [("w", 1.3)]),
        ("((w:1.3))", [("w", 1.43)]),
        ("(a:-1)", [("a", -1.0)]),
        ("(a:+.5)", [("a", 0.5)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:1.2", [("a:1.2", 1.1)]),
        ("a (b (c:1.5) d:1.2)", [("a ", 1), ("b ", 1.2), ("c", 1.8), (" d", 1.2)]),
        ("x:1.2", [("x:1.2", 1)]),
        ("[w:1.3]", [("w:1.3", 1 / 1.1)]),
        (r"\(a\) \[b\] \\", [(r"(a) [b] " + "\\", 1)]),
        (r"(\(a\):1.5)", [("(a)", 1.5)]),
        (r"a\b", [("ab", 1)]),
        ("(a", [("a", 1.1)]),
        ("[a (b", [("a ", 1 / 1.1), ("b", 1)]),
        ("a) b] c:1.2)", [("a) b] c:1.2)", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("()(a)", [("a", 1.1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("(a:0)", [("a", 0)]),
        ("", []),
    ],
)
def test_attention(text: str, expected: list[tuple[str, float]]) -> None:
    assert weights(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [[("a", 1)], [("b", 1)]]),
        ("a\nBREAK\nb BREAK c ", [[("a", 1)], [("b", 1)], [("c ", 1)]]),
        ("BREAK", [[], []]),
        ("BREAKFAST break", [[("BREAKFAST break", 1)]]),
        ("(a BREAK b:1.5)", [[("a", 1.5)], [("b", 1.5)]]),
    ],
)
def test_breaks(text: str, expected: list[list[tuple[str, float]]]) -> None:
    assert prompt_grammar.segments(text) == tuple(
        tuple(Segment(*segment) for segment in stretch) for stretch in expected
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[cat:dog:0.5]", [(5, "cat"), (10, "dog")]),
        ("[cat:dog:3]", [(3, "cat"), (10, "dog")]),
        ("[cat::0.3]", [(3, "cat"), (10, "")]),
        ("[(a:1.2):0.5]", [(5, ""), (10, "(a:1.2)")]),
        ("[cat:dog:1.0]", [(10, "cat")]),
        ("[cat:dog:1]", [(1, "cat"), (10, "dog")]),
        ("[cat:dog:0]", [(10, "dog")]),
        ("[cat:dog:-2]", [(10, "dog")]),
        ("[cat:dog:99]", [(10, "cat")]),
        ("[cat:dog:1e999]", [(10, "cat")]),
        ("a [ wet : dry : 4 ] dog", [(4, "a  wet  dog"), (10, "a  dry  dog")]),
        ("a [hat: 2]", [(2, "a "), (10, "a hat")]),
        ("a [[[fog]]:2]", [(2, "a "), (10, "a [[fog]]")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [b:.5] and [c:.2]", [(2, "a  and "), (5, "a  and c"), (10, "a b and c")]),
        ("[a:1:2]", [(2, "a"), (10, "1")]),
        (r"[a\:b:c:2]", [(2, r"a\:b"), (10, "c")]),
        ("plain, text", [(10, "plain, text")]),
        ("(a:1.2) [b]", [(10, "(a:1.2) [b]")]),
        ("16:9", [(10, "16:9")]),
        ("a [never closed", [(10, "a [never closed")]),
        ("a [b:c:d] e", [(10, "a [b:c:d] e")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[x:[a:b:c:3]:2]", [(10, "[x:[a:b:c:3]:2]")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("", [(10, "")]),
        # Outside the grammar: nothing of the prompt is unfolded.
        ("[cat:dog:3] | x", [(10, "[cat:dog:3] | x")]),
        ("[cat:dog:3] [a|b", [(10, "[cat:dog:3] [a|b")]),
        ("[cat:dog:3] (a|b)", [(10, "[cat:dog:3] (a|b)")]),
        ("[cat:dog:3] \\", [(10, "[cat:dog:3] \\")]),
    ],
)
def test_editing(text: str, expected: list[tuple[int, str]]) -> None:
    assert tuple(prompt_grammar.timeline(text, 10)) == tuple(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a|b|c]", "abcabcabca"),
        ("[a|]", ["a", ""] * 5),
        ("[a|||]x", ["ax", "x", "x", "x", "ax", "x", "x", "x", "ax", "x"]),
        ("[a|(b:1.1)]", ["a", "(b:1.1)"] * 5),
        ("[a|[b|c]]", "acacacacac"),
        ("[[a|b]:c:3]", "abaccccccc"),
    ],
)
def test_alternation(text: str, expected: list[str]) -> None:
    assert tuple(prompt_grammar.timeline(text, 10)) == tuple(enumerate(expected, start=1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[cat:dog:0.5]", [(8, "dog")]),  # over in the first pass
        ("[cat:dog:3]", [(8, "dog")]),
        ("[cat:dog:14]", [(4, "cat"), (8, "dog")]),
        ("[cat:dog:1.25]", [(2, "cat"), (8, "dog")]),
        ("[cat:dog:10]", [(8, "dog")]),
    ],
)
def test_the_second_pass_counts_on_from_the_first(text: str, expected: list[tuple[int, str]]) -> None:
    assert tuple(prompt_grammar.timeline(text, 8, first_pass_steps=10)) == tuple(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a AND b :1.2 AND c:-0.5", [("a", 1), (" b", 1.2), (" c", -0.5)]),
        ("a AND (b:1.3)", [("a", 1), (" (b:1.3)", 1)]),
        ("sand AND BAND and ANDy", [("sand", 1), (" BAND and ANDy", 1)]),
        ("a:2", [("a", 2)]),
        ("a AND", [("a", 1), ("", 1)]),
        ("a:b AND c:1e3", [("a:b", 1), (" c:1e3", 1)]),
        ("a:" + "9" * 400, [("a", prompt_grammar.MAX_WEIGHT)]),
    ],
)
def test_parts(text: str, expected: list[tuple[str, float]]) -> None:
    assert prompt_grammar.parts(text) == tuple(expected)


@pytest.mark.parametrize(
    ("text", "left", "tags"),
    [
        ("a <lora:ink> b", "a  b", [("ink", 1, 1)]),
        ("<lora:ink:0.5>", "", [("ink", 0.5, 0.5)]),
        ("<lora:ink:0.5:0.8>", "", [("ink", 0.5, 0.8)]),
        ("<lora:ink:0.5:0.8:16>", "", [("ink", 0.5, 0.8)]),
        ("<lora:ink:te=0.2:unet=-1>", "", [("ink", 0.2, -1)]),
        ("<lora:ink:unet=0.3>", "", [("ink", 1, 0.3)]),
        ("<lora:ink:0.4:unet=0.3:dyn=8>", "", [("ink", 0.4, 0.3)]),
        ("<lora:ink:te=0.2>", "", [("ink", 0.2, 0.2)]),
        ("<lyco:old:0.7>x<lora:new v2>", "x", [("old", 0.7, 0.7), ("new v2", 1, 1)]),
        ("<lora:ink:strong>", "", [("ink", 1, 1)]),
        ("<hypernet:h:0.5><other:thing>", "", []),
        ("<lora:>x<lora: >", "<lora:>x", []),
        ("I <3 <b> cats <lora:ink", "I <3 <b> cats <lora:ink", []),
        ("<lora:a:1e999>", "", [("a", prompt_grammar.MAX_WEIGHT, prompt_grammar.MAX_WEIGHT)]),
    ],
)
def test_loras(text: str, left: str, tags: list[tuple[str, float, float]]) -> None:
    assert prompt_grammar.split_loras(text) == (left, tuple(LoraTag(*tag) for tag in tags))


def everything(text: str) -> None:
    left, _ = prompt_grammar.split_loras(text)
    for part, weight in prompt_grammar.parts(left):
        assert abs(weight) <= prompt_grammar.MAX_WEIGHT
        entries = tuple(prompt_grammar.timeline(part, 7))
        assert [step for step, _ in entries] == sorted({step for step, _ in entries})
        assert entries[-1][0] == 7
        assert entries[0][0] >= 1
        for _, entry in entries:
            for stretch in prompt_grammar.segments(entry):
                assert all(segment.text and abs(segment.weight) <= prompt_grammar.MAX_WEIGHT for segment in stretch)


@given(ANY)
def test_no_text_raises(text: str) -> None:
    everything(text)


@given(PLAIN)
def test_plain_text_survives(text: str) -> None:
    assert prompt_grammar.split_loras(text) == (text, ())
    assert tuple(prompt_grammar.timeline(text, 20)) == ((20, text),)
    stretches = prompt_grammar.segments(text.replace("BREAK", ""))
    assert "".join(segment.text for (*stretch,) in stretches for segment in stretch) == text.replace("BREAK", "")


@given(PLAIN)
def test_escaped_brackets_are_the_text(text: str) -> None:
    escaped = re.sub(r"([\\()\[\]])", r"\\\1", f"({text})[{text}]\\").replace("BREAK", "")
    ((segment,),) = prompt_grammar.segments(escaped)
    assert segment == Segment(f"({text})[{text}]\\".replace("BREAK", ""), 1.0)


@given(SYNTAX, st.integers(1, 12))
def test_every_step_has_the_text_of_a_prompt_without_editing(text: str, steps: int) -> None:
    """Only editing brackets and what is in them may go; a prompt with no colon and no bar has none."""
    text = text.replace(":", "").replace("|", "")
    assert tuple(prompt_grammar.timeline(text, steps)) == ((steps, text),)


HOSTILE = [
    *(
        "(" * 10_000,
        "[" * 10_000,
        "(" * 5000 + ")" * 5000,
        "[" * 5000 + "]" * 5000,
        "[a:" * 3000,
        "(]" * 5000,
        "[)" * 5000,
    ),
    *(
        "[" * 3300 + "a" + ":1]" * 2000,
        "[a|" * 2500 + "]" * 2500,
        "[" * 2500 + "|b]" * 2500,
        "[a:b:3]" * 1400,
        "|" * 10_000,
    ),
    *("\\" * 10_000, ":" * 10_000, ": " * 5000, ":1" * 5000, "(a:" + "1" * 9990, "(a:1" + " " * 9990, " " * 10_000),
    *("<a:" * 3300, "<" + "a" * 9999, "<lora:" * 1666, "<lora:a=" + "=" * 9000 + ">", "BREAK " * 1666, "AND " * 2500),
    *("(" * 5000 + ":9)" * 1666, "([" * 2500 + ")]" * 2500, "[" + "|" * 9998 + "]", "(a:0)" * 2000, "a:" + "1" * 9990),
]


@pytest.mark.timeout(30)  # each takes milliseconds; a reader of quadratic time would take minutes
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_read(text: str) -> None:
    everything(text)
