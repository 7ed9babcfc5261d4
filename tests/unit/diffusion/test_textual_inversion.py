"""Embedding files good and bad, and what their words do to the demo checkpoint's text encoder."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file
from structlog.testing import capture_logs
from torch import Tensor

from shared.errors import BadCheckpoint
from shared.files import checkpoints
from worker.diffusion import checkpoint_loader, textual_inversion
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.conditioning import PromptEncoder, PromptReader
from worker.diffusion.textual_inversion import Embedding, Embeddings

DEMO = Path(__file__).parents[3] / "deploy/standalone/checkpoints/farm-demo.safetensors"
WIDTH = 48
Encode = Callable[..., Tensor]


@pytest.fixture(scope="module")
def checkpoint() -> LoadedCheckpoint:
    return checkpoint_loader.load(checkpoints.inspect(DEMO), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def encode(checkpoint: LoadedCheckpoint) -> Encode:
    """The hidden states of a prompt."""
    reader = PromptReader()

    def encoded(text: str, *embeddings: Embedding) -> Tensor:
        return PromptEncoder(checkpoint).encode(reader.read(text, None, steps=1, embeddings=embeddings)).at(0)

    return encoded


@pytest.fixture(scope="module")
def word(checkpoint: LoadedCheckpoint) -> Callable[..., Embedding]:
    """An embedding made of the token embeddings of known words."""

    def made(name: str, words: str) -> Embedding:
        ids = checkpoint.tokenizer(words, add_special_tokens=False).input_ids
        return Embedding(name, checkpoint.text_encoder.get_input_embeddings().weight[ids].clone())

    return made


def save(path: Path, vectors: int = 1, *, key: str = "emb_params", width: int = WIDTH, fill: float = 1.0) -> Path:
    save_file({key: torch.full((vectors, width), fill)}, path)
    return path


def names(embeddings: tuple[Embedding, ...]) -> list[str]:
    return [embedding.name for embedding in embeddings]


@pytest.mark.parametrize(
    ("tensors", "vectors"),
    [
        ({"emb_params": torch.ones(3, WIDTH)}, 3),
        ({"emb_params": torch.ones(2, WIDTH, dtype=torch.float16)}, 2),
        ({"emb_params": torch.ones(2, WIDTH, dtype=torch.bfloat16), "step": torch.ones(1)}, 2),
        ({"<my-token>": torch.ones(WIDTH)}, 1),
        ({"<my-token>": torch.ones(75, WIDTH)}, 75),
        ({"clip_l": torch.ones(4, WIDTH)}, 4),
    ],
)
def test_layouts(tmp_path: Path, tensors: dict[str, Tensor], vectors: int) -> None:
    path = tmp_path / "My Style.safetensors"
    save_file(tensors, path)
    embedding = textual_inversion.load(path, WIDTH)
    assert embedding.name == "My Style"
    assert (embedding.vectors.dtype, tuple(embedding.vectors.shape)) == (torch.float32, (vectors, WIDTH))
    assert torch.equal(embedding.vectors, torch.ones(vectors, WIDTH))


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"clip_l": torch.ones(1, WIDTH), "clip_g": torch.ones(1, 1280)}, "SDXL"),
        ({"emb_params": torch.ones(1, 1024)}, "1024"),
        ({"emb_params": torch.ones(76, WIDTH)}, "76"),
        ({"emb_params": torch.ones(0, WIDTH)}, "0"),
        ({"emb_params": torch.ones(1, 1, WIDTH)}, "expected"),
        ({"emb_params": torch.tensor(1.0)}, "expected"),
        ({"emb_params": torch.full((1, WIDTH), float("nan"))}, "not-a-number"),
        ({"lora_up": torch.ones(1, WIDTH), "lora_down": torch.ones(1, WIDTH)}, "2 tensors"),
        ({}, "0 tensors"),
    ],
)
def test_what_is_no_embedding_for_this_checkpoint(tmp_path: Path, tensors: dict[str, Tensor], complaint: str) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(BadCheckpoint, match=complaint) as refused:
        textual_inversion.load(path, WIDTH)
    assert "bad.safetensors" in str(refused.value)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadCheckpoint, match=r"cut\.safetensors"):
        textual_inversion.load(path, WIDTH)


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe"])
def test_a_name_that_no_prompt_can_contain_is_refused(tmp_path: Path, name: bytes) -> None:
    path = save(tmp_path / "good.safetensors").rename(tmp_path / f"{os.fsdecode(name)}.safetensors")
    with pytest.raises(BadCheckpoint, match="rename"):
        textual_inversion.load(path, WIDTH)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint):
        textual_inversion.load(tmp_path / "none.safetensors", WIDTH)


def test_a_folder_is_followed(tmp_path: Path) -> None:
    embeddings = Embeddings(tmp_path, WIDTH)
    assert embeddings.rescan() == ()
    save(tmp_path / "b.safetensors")
    save(tmp_path / "a.safetensors")
    (tmp_path / "readme.txt").write_text("not weights")
    (tmp_path / "old.pt").write_bytes(b"a pickle")
    first = embeddings.rescan()
    assert names(first) == ["a", "b"]
    assert embeddings.rescan() == first  # the very same objects: nothing was read again
    save(tmp_path / "a.safetensors", 2)
    second = embeddings.rescan()
    assert [len(embedding.vectors) for embedding in second] == [2, 1]
    assert second[1] is first[1]
    (tmp_path / "b.safetensors").unlink()
    assert names(embeddings.rescan()) == ["a"]


def test_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert Embeddings(tmp_path / "none", WIDTH).rescan() == ()


def test_bad_files_are_logged_once_and_left_out(tmp_path: Path) -> None:
    save(tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    embeddings = Embeddings(tmp_path, WIDTH)
    with capture_logs() as logs:
        assert names(embeddings.rescan()) == ["good"]
        assert names(embeddings.rescan()) == ["good"]
    refused = [entry["reason"] for entry in logs if entry["event"] == "embedding.refused"]
    assert sorted(Path(reason.split(":")[0]).name for reason in refused) == [
        "bad.safetensors",
        "folder.safetensors",
        "gone.safetensors",
    ]


def test_a_file_cut_while_it_is_replaced_keeps_its_vectors(tmp_path: Path) -> None:
    path = save(tmp_path / "style.safetensors", 3)
    whole = path.read_bytes()
    embeddings = Embeddings(tmp_path, WIDTH)
    (loaded,) = embeddings.rescan()
    path.write_bytes(whole[: len(whole) // 2])
    assert embeddings.rescan() == (loaded,)
    path.write_bytes(whole)
    os.utime(path, ns=(1, 1))
    (again,) = embeddings.rescan()
    assert again is not loaded
    assert torch.equal(again.vectors, loaded.vectors)


def test_loaded_vectors_outlive_their_file(tmp_path: Path) -> None:
    path = save(tmp_path / "style.safetensors", 3)
    (loaded,) = Embeddings(tmp_path, WIDTH).rescan()
    path.write_bytes(bytes(path.stat().st_size))  # in place, as a memory map would show it
    os.truncate(path, 10)
    assert torch.equal(loaded.vectors, torch.ones(3, WIDTH))


def test_many_threads_rescan(tmp_path: Path) -> None:
    """Each file is read by one of them."""
    for n in range(20):
        save(tmp_path / f"style{n:02}.safetensors")
    embeddings = Embeddings(tmp_path, WIDTH)
    found: list[tuple[Embedding, ...]] = []
    threads = [Thread(target=lambda: found.append(embeddings.rescan())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 8
    assert len(found[0]) == 20


@pytest.mark.parametrize(
    "text", ["{} circle", "a {}, sharp", "a ({}:1.3) circle", "a [{}] circle", "[{}:blue:1] x", "x BREAK {}"]
)
def test_an_embedding_of_red_reads_as_red(encode: Encode, word: Callable[..., Embedding], text: str) -> None:
    style = word("MyStyle", "red")
    assert torch.equal(encode(text.format("MyStyle"), style), encode(text.format("red")))
    assert not torch.equal(encode(text.format("MyStyle")), encode(text.format("red")))


def test_several_vectors_are_several_tokens(encode: Encode, word: Callable[..., Embedding]) -> None:
    style = word("my style", "red circle on blue")
    assert torch.equal(encode("a my style, sharp", style), encode("a red circle on blue, sharp"))
    assert torch.equal(encode("my style my style", style), encode("red circle on blue red circle on blue"))


def test_the_name_counts_in_any_case(encode: Encode, word: Callable[..., Embedding]) -> None:
    style = word("MyStyle", "red")
    for name in ("mystyle", "MYSTYLE", "MyStyle"):
        assert torch.equal(encode(f"a {name} circle", style), encode("a red circle"))


def test_the_longest_name_wins(encode: Encode, word: Callable[..., Embedding]) -> None:
    both = word("style", "red"), word("style two", "blue")
    for order in (both, both[::-1]):
        assert torch.equal(encode("a style two, style one", *order), encode("a blue, red one"))


def test_a_name_that_only_begins_a_word_is_not_meant(encode: Encode, word: Callable[..., Embedding]) -> None:
    assert torch.equal(encode("redder", word("red", "blue")), encode("redder"))


def test_an_embedding_never_straddles_chunks(encode: Encode, word: Callable[..., Embedding]) -> None:
    style = word("style", "red circle on blue")
    filler = "sharp " * 73
    assert torch.equal(encode(filler + "style", style), encode(filler + "BREAK red circle on blue"))
    assert torch.equal(encode("sharp " * 71 + "style x", style), encode("sharp " * 71 + "red circle on blue BREAK x"))


def test_an_embedding_moves_with_the_words_behind_a_comma(encode: Encode, word: Callable[..., Embedding]) -> None:
    style = word("style", "red circle")
    text = "sharp " * 70 + ", a {} b c d"
    assert torch.equal(encode(text.format("style"), style), encode(text.format("red circle")))


def test_the_vocabulary_is_untouched(
    encode: Encode, word: Callable[..., Embedding], checkpoint: LoadedCheckpoint
) -> None:
    module = checkpoint.text_encoder.get_input_embeddings()
    before = module.weight.clone(), len(checkpoint.tokenizer), len(module._forward_hooks)
    encode("a style", word("style", "red"))
    assert torch.equal(module.weight, before[0])
    assert (len(checkpoint.tokenizer), len(module._forward_hooks)) == before[1:]
