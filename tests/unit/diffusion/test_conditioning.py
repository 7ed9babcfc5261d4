"""Prompts to chunks to hidden states with the demo checkpoint's tokenizer and text encoder, against small computations."""

import copy
import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from shared.errors import InvalidRequest
from shared.files import checkpoints
from shared.vocabulary import prompt_grammar as grammar
from shared.vocabulary.prompt_chunks import MAX_CHUNKS
from shared.vocabulary.prompt_reader import MAX_PARTS
from tests.support.studio import doubled
from tests.support.walking import SAME, distance
from worker.diffusion import checkpoint_loader
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.conditioning import Chunk, Conditions, PromptEncoder, PromptReader, Script

DEMO = Path(__file__).parents[3] / "deploy/standalone/checkpoints/farm-demo.safetensors"
BOS, EOS = 49406, 49407
RED = "a red circle on a blue background"


@pytest.fixture(scope="module")
def checkpoint() -> LoadedCheckpoint:
    return checkpoint_loader.load(checkpoints.inspect(DEMO), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def reader() -> PromptReader:
    return PromptReader()


@pytest.fixture
def encoder(checkpoint: LoadedCheckpoint) -> PromptEncoder:
    return PromptEncoder(checkpoint)


def texts_of(script: Script, row: int = 0) -> list[tuple[int, list[list[int]]]]:
    """What a row reads and until when, as token ids by chunk."""
    return [
        (last_step, [[token for token, _ in chunk.slots] for chunk in text])
        for last_step, text in script.rows[row].timeline
    ]


def chunks_of(reader: PromptReader, text: str) -> list[list[int]]:
    ((_, chunks),) = texts_of(reader.read(text, None, steps=1))
    return chunks


def ids(checkpoint: LoadedCheckpoint, text: str) -> list[int]:
    tokens: list[int] = checkpoint.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return tokens


@torch.inference_mode()
def plain(checkpoint: LoadedCheckpoint, tokens: Sequence[int]) -> Any:
    """What transformers says of one chunk."""
    row = [BOS, *tokens, *[EOS] * (76 - len(tokens))]
    return checkpoint.text_encoder(torch.tensor([row]), output_hidden_states=True)


def states(reader: PromptReader, encoder: PromptEncoder, text: str, **how: Any) -> Tensor:
    return encoder.encode(reader.read(text, None, steps=1, **how)).at(0)


def test_a_short_prompt_is_one_chunk(reader: PromptReader, checkpoint: LoadedCheckpoint) -> None:
    script = reader.read(RED, None, steps=20)
    assert texts_of(script) == [(20, [ids(checkpoint, RED)])]
    assert (script.samples, script.tokens, script.guided, script.clip_skip) == (1, 77, False, 1)
    assert hash(script) == hash(reader.read(RED, None, steps=20))
    assert script == reader.read(RED, None, steps=20)


@pytest.mark.parametrize(
    ("words", "sizes"),
    [(0, [0]), (1, [1]), (75, [75]), (76, [75, 1]), (150, [75, 75]), (151, [75, 75, 1])],
)
def test_prompts_have_any_length(reader: PromptReader, words: int, sizes: list[int]) -> None:
    assert [len(chunk) for chunk in chunks_of(reader, "red " * words)] == sizes


@pytest.mark.parametrize(
    ("before", "after", "sizes"),
    [
        (60, 20, [61, 20]),  # `red` × 60, a comma, 20 more words: those behind the comma move on together
        (54, 25, [75, 5]),  # the comma is the 55th: 21 tokens from the end, too far
        (55, 25, [56, 25]),  # the 56th is the first that is near
        (74, 5, [75, 5]),
        (75, 5, [75, 6]),  # a comma that does not fit begins the next chunk, and moves no words
    ],
)
def test_a_full_chunk_breaks_after_a_near_comma(
    reader: PromptReader, before: int, after: int, sizes: list[int]
) -> None:
    assert [len(chunk) for chunk in chunks_of(reader, "red " * before + "," + " red" * after)] == sizes


def test_break_ends_a_chunk(reader: PromptReader, checkpoint: LoadedCheckpoint) -> None:
    red, blue = ids(checkpoint, "red"), ids(checkpoint, "blue")
    assert chunks_of(reader, "red BREAK blue") == [red, blue]
    assert chunks_of(reader, "BREAK red") == [[], red]
    assert chunks_of(reader, "red BREAK") == [red]


def test_weights_stand_with_their_tokens(reader: PromptReader, checkpoint: LoadedCheckpoint) -> None:
    script = reader.read("a (red circle:1.5) [blue]", None, steps=1)
    ((_, (chunk,)),) = script.rows[0].timeline
    assert [token for token, _ in chunk.slots] == ids(checkpoint, "a red circle blue")
    assert [weight for _, weight in chunk.slots] == [1.0, 1.5, 1.5, 1 / 1.1]


def test_all_texts_of_a_script_have_one_length(reader: PromptReader, checkpoint: LoadedCheckpoint) -> None:
    script = reader.read("[red:" + "blue " * 80 + ":2] AND green", "", steps=4)
    red, green = ids(checkpoint, "red"), ids(checkpoint, "green")
    blue = ids(checkpoint, "blue")
    assert texts_of(script, 0) == [(4, [[], []])]
    assert texts_of(script, 1) == [(2, [red, []]), (4, [blue * 75, blue * 5])]
    assert texts_of(script, 2) == [(4, [green, []])]
    assert (script.samples, script.tokens) == (3, 154)


def test_a_plain_prompt_is_what_transformers_says(
    reader: PromptReader, encoder: PromptEncoder, checkpoint: LoadedCheckpoint
) -> None:
    """Bit for bit, and so whatever else was encoded before."""
    long = RED + ", sharp" * 60
    first, *others = chunks_of(reader, long)
    expected = [plain(checkpoint, chunk).last_hidden_state for chunk in (first, *others)]
    assert torch.equal(states(reader, encoder, RED), plain(checkpoint, ids(checkpoint, RED)).last_hidden_state)
    assert torch.equal(states(reader, encoder, long), torch.cat(expected, dim=1))
    assert torch.equal(states(reader, encoder, f"({long}:1.0)"), torch.cat(expected, dim=1))


def test_the_negative_prompt_comes_first(
    reader: PromptReader, encoder: PromptEncoder, checkpoint: LoadedCheckpoint
) -> None:
    conditions = encoder.encode(reader.read("red", "blue", steps=1))
    expected = [plain(checkpoint, ids(checkpoint, word)).last_hidden_state for word in ("blue", "red")]
    assert torch.equal(conditions.at(0), torch.cat(expected))
    assert (conditions.samples, conditions.tokens, conditions.guided, conditions.weights) == (2, 77, True, (1.0,))


@pytest.mark.parametrize("text", ["a (red:1.4) circle", "a [red] circle", "(a:0) red ((circle:-1.2))", "((red))"])
def test_emphasis_multiplies_and_restores_the_mean(
    reader: PromptReader, encoder: PromptEncoder, checkpoint: LoadedCheckpoint, text: str
) -> None:
    weights = {
        "a (red:1.4) circle": [1, 1.4, 1],
        "a [red] circle": [1, 1 / 1.1, 1],
        "(a:0) red ((circle:-1.2))": [0, 1, -1.32],
        "((red))": [1.21],
    }[text]
    (tokens,) = chunks_of(reader, text)
    z = plain(checkpoint, tokens).last_hidden_state[0].double()
    scaled = z.clone()
    for position, weight in enumerate(weights):
        scaled[1 + position] *= weight
    expected = scaled * (z.mean() / scaled.mean())
    # The mean of numbers of either sign is what they leave of each other, and sixteen halvings add up so many numbers.
    cancelled = sum(float(numbers.abs().mean() / numbers.mean().abs()) for numbers in (z, scaled))
    torch.testing.assert_close(
        states(reader, encoder, text)[0].double(), expected, rtol=(4 + 16 * cancelled) * 2.0**-24, atol=0
    )


def test_emphasis_is_restored_chunk_by_chunk(reader: PromptReader, encoder: PromptEncoder) -> None:
    """A weight in one chunk changes nothing in another."""
    both = states(reader, encoder, "(red:1.5) BREAK blue")
    assert torch.equal(both[:, :77], states(reader, encoder, "(red:1.5)"))
    assert torch.equal(both[:, 77:], states(reader, encoder, "blue"))


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_ends_early_and_normalizes(
    reader: PromptReader, checkpoint: LoadedCheckpoint, clip_skip: int
) -> None:
    """Counted as A1111 does: 1 is the last of the three layers. Computed here layer by layer."""
    tokens = [BOS, *ids(checkpoint, RED), *[EOS] * (76 - len(ids(checkpoint, RED)))]
    checkpoint = doubled(checkpoint)
    te = checkpoint.text_encoder
    causal = torch.full((77, 77), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    with torch.inference_mode():
        hidden = te.embeddings(input_ids=torch.tensor([tokens]))
        for layer in te.encoder.layers[: 4 - clip_skip]:
            output = layer(hidden, attention_mask=causal)
            hidden = output if isinstance(output, Tensor) else output[0]
        expected = torch.nn.functional.layer_norm(
            hidden, hidden.shape[-1:], te.final_layer_norm.weight, te.final_layer_norm.bias, te.final_layer_norm.eps
        )
    ours = states(reader, PromptEncoder(checkpoint), RED, clip_skip=clip_skip)
    assert distance(ours, expected) < SAME


def test_both_layouts_of_the_text_encoder(reader: PromptReader, checkpoint: LoadedCheckpoint) -> None:
    nested = CLIPTextModelWithProjection(checkpoint.text_encoder.config).eval()
    nested.float().text_model.load_state_dict(checkpoint.text_encoder.state_dict())
    theirs = PromptEncoder(replace(checkpoint, text_encoder=nested))
    for clip_skip in (1, 2):
        assert torch.equal(
            states(reader, theirs, RED, clip_skip=clip_skip),
            states(reader, PromptEncoder(checkpoint), RED, clip_skip=clip_skip),
        )


def test_clip_skip_minds_no_other_encoder_while_torch_compiles(
    reader: PromptReader, checkpoint: LoadedCheckpoint, encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compile on any thread is seen on all, and the library then keeps one list of hidden states for the whole process."""
    expected = states(reader, PromptEncoder(checkpoint), RED, clip_skip=2)
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    other = Thread(target=copy.deepcopy(checkpoint.text_encoder), args=(torch.tensor([[BOS, EOS]]),))

    def meanwhile(*_: Any) -> None:
        other.start()
        other.join()

    hook = checkpoint.text_encoder.encoder.layers[0].register_forward_hook(meanwhile)
    try:
        assert torch.equal(states(reader, encoder, RED, clip_skip=2), expected)
    finally:
        hook.remove()


@pytest.mark.parametrize("clip_skip", [0, 4])
def test_a_clip_skip_beyond_the_layers_is_refused(reader: PromptReader, encoder: PromptEncoder, clip_skip: int) -> None:
    with pytest.raises(InvalidRequest, match="3 layers"):
        states(reader, encoder, RED, clip_skip=clip_skip)


def at_each(conditions: Conditions, steps: int) -> list[int]:
    """Which tensor is read at each step, numbered in order of first use."""
    names: dict[int, int] = {}
    return [names.setdefault(id(conditions.at(step)), len(names)) for step in range(steps)]


@pytest.mark.parametrize(
    ("text", "negative", "changes"),
    [
        ("red", None, [0, 0, 0, 0, 0, 0]),
        ("[red:blue:2]", None, [0, 0, 1, 1, 1, 1]),
        ("[red:blue:0.5]", "[sharp:1]", [0, 1, 1, 2, 2, 2]),
        ("[red|blue]", None, [0, 1, 0, 1, 0, 1]),
        ("[red:red:2]", None, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_context_changes_when_the_prompt_does(
    reader: PromptReader, encoder: PromptEncoder, text: str, negative: str | None, changes: list[int]
) -> None:
    conditions = encoder.encode(reader.read(text, negative, steps=6))
    assert at_each(conditions, 6) == changes
    assert conditions.at(99) is conditions.at(5)


def test_editing_reads_the_edited_words(reader: PromptReader, encoder: PromptEncoder) -> None:
    conditions = encoder.encode(reader.read("a [red:blue:2] circle", None, steps=4))
    assert torch.equal(conditions.at(1), states(reader, encoder, "a red circle"))
    assert torch.equal(conditions.at(2), states(reader, encoder, "a blue circle"))
    second = encoder.encode(reader.read("a [red:blue:6] circle", None, steps=4, first_pass_steps=5))
    assert torch.equal(second.at(0), states(reader, encoder, "a red circle"))
    assert torch.equal(second.at(1), states(reader, encoder, "a blue circle"))


def guide(reader: PromptReader, encoder: PromptEncoder, text: str, negative: str | None, scale: float) -> Any:
    """The guided prediction for given ones: (predictions, result)."""
    conditions = encoder.encode(reader.read(text, negative, steps=1))
    predictions = torch.randn(conditions.samples, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return predictions, conditions.guide(predictions, scale)


def test_guidance(reader: PromptReader, encoder: PromptEncoder) -> None:
    (negative, positive), guided = guide(reader, encoder, "red", "blue", 7.5)
    assert torch.equal(guided[0], negative + 7.5 * (positive - negative))
    (only,), unguided = guide(reader, encoder, "red", None, 1.0)
    assert torch.equal(unguided[0], only)


@pytest.mark.parametrize("negative", ["blue", "", None])
def test_parts_are_weighed_against_the_negative(
    reader: PromptReader, encoder: PromptEncoder, negative: str | None
) -> None:
    (base, a, b, c), guided = guide(reader, encoder, "red AND circle :1.2 AND sharp:-0.5", negative, 3.0)
    expected = base + 3.0 * (1.0 * (a - base) + 1.2 * (b - base) - 0.5 * (c - base))
    torch.testing.assert_close(guided, expected[None])


def test_parts_without_a_negative_prompt_get_an_empty_one(reader: PromptReader) -> None:
    assert reader.read("red AND circle", None, steps=1) == reader.read("red AND circle", "", steps=1)
    assert reader.read("red :0.5", None, steps=1) == reader.read("red :0.5", "", steps=1)


def test_the_text_loras_are_part_of_what_is_remembered(reader: PromptReader, checkpoint: LoadedCheckpoint) -> None:
    """The same chunk is another tensor under another LoRA, and the very same one under none."""
    encoder = PromptEncoder(checkpoint)
    script = reader.read(RED, None, steps=1)
    before = encoder.encode(script).at(0)
    bias = checkpoint.text_encoder.final_layer_norm.bias
    bias.data += 1
    try:
        under_lora = encoder.encode(script, text_loras=("ink", 1.0)).at(0)
        remembered = encoder.encode(script).at(0)
    finally:
        bias.data -= 1
    torch.testing.assert_close(under_lora, before + 1)
    assert torch.equal(remembered, before)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("BREAK " * MAX_CHUNKS + "red", 1),
        ("red " * (75 * MAX_CHUNKS + 1), 1),
        ("red AND " * MAX_PARTS, 1),
        ("".join(f"{n} [a|b] [a|b|c] [a|b|c|d|e] BREAK " for n in range(10)), 150),
    ],
    ids=["breaks", "words", "parts", "changes"],
)
def test_what_would_fill_the_memory_is_refused(reader: PromptReader, text: str, steps: int) -> None:
    with pytest.raises(InvalidRequest):
        reader.read(text, None, steps=steps)


def test_no_text_is_made_beyond_the_chunk_that_is_too_many(
    reader: PromptReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, render = list[int](), grammar._render

    def counted(tree: Any, step: int) -> str:
        made.append(step)
        return render(tree, step)

    monkeypatch.setattr(grammar, "_render", counted)
    with pytest.raises(InvalidRequest, match="different chunks"):
        reader.read("".join(f"{n} [a|b] [a|b|c] [a|b|c|d|e] BREAK " for n in range(10)), None, steps=150)
    assert len(made) < 50


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*"ab,()[]:|", "red ", ", ", " BREAK ", ":0.5]", "(x:1.3)"]), max_size=150).map("".join)
)
def test_chunks_hold_all_tokens_in_order(reader: PromptReader, text: str) -> None:
    """Whatever the prompt: no chunk is too long, and packing loses and reorders nothing."""
    script = reader.read(text, "", steps=3)
    entries = grammar.timeline(grammar.parts(text)[0][0], 3)
    for (last_step, chunks), (_, entry) in zip(texts_of(script, 1), entries, strict=True):
        assert last_step <= 3
        assert all(len(chunk) <= 75 for chunk in chunks)
        one_by_one = [
            token for stretch in grammar.segments(entry) for segment in stretch for token in reader._ids(segment.text)
        ]
        assert [token for chunk in chunks for token in chunk] == one_by_one


@settings(deadline=None)
@given(st.text(max_size=80))
def test_the_tokenizer_is_the_librarys(checkpoint: LoadedCheckpoint, reader: PromptReader, text: str) -> None:
    assert reader._ids(text) == ids(checkpoint, text)


@pytest.mark.parametrize("text", ["it's 42 o'clock", "<|endoftext|> red <|startoftext|>", "Émigré ＲＥＤ\tçà 🟥"])
def test_hard_texts_are_the_librarys_tokens(checkpoint: LoadedCheckpoint, reader: PromptReader, text: str) -> None:
    assert reader._ids(text) == ids(checkpoint, text)


def test_many_threads_read_at_once(reader: PromptReader, checkpoint: LoadedCheckpoint) -> None:
    """While diffusers' own pipelines change the truncation of theirs."""
    prompts = [f"{RED}, {'sharp ' * n}" for n in range(60)]
    expected = [reader.read(text, "", steps=1) for text in prompts]
    together = Barrier(5)
    failures: list[Exception] = []

    def read() -> None:
        try:
            together.wait()
            assert [reader.read(text, "", steps=1) for text in prompts] == expected
        except Exception as error:  # noqa: BLE001 - reported by the test
            failures.append(error)

    def disturb() -> None:
        together.wait()
        for _ in range(200):
            checkpoint.tokenizer("red", truncation=True, max_length=4, padding="max_length")
            checkpoint.tokenizer("red")

    threads = [*(Thread(target=read) for _ in range(4)), Thread(target=disturb)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_empty_chunk_is_the_empty_prompt(reader: PromptReader) -> None:
    ((_, text),) = reader.read("", None, steps=1).rows[0].timeline
    assert text == (Chunk(),)


def test_conditions_go_with_their_last_reference(reader: PromptReader, checkpoint: LoadedCheckpoint) -> None:
    """Not with the collector of cycles, which knows nothing of a device's memory."""
    conditions = PromptEncoder(checkpoint).encode(reader.read("[red|blue]", "", steps=4))
    held = weakref.ref(conditions.at(0))
    gc.disable()
    try:
        del conditions
        assert held() is None
    finally:
        gc.enable()
