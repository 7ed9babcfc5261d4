"""What lies in the folders of LoRAs, embeddings and VAEs, and what is refused, each in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from shared.errors import BadWeights, WeightsMissing
from shared.files.weights import Kind, Shelf, inspect

K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LORA = {f"{K}.lora_down.weight": torch.zeros(4, 768), f"{K}.lora_up.weight": torch.zeros(320, 4)}
EMBEDDING = {"emb_params": torch.zeros(3, 768)}
VAE = {f"{half}.conv_in.weight": torch.zeros(4, 4, 3, 3) for half in ("encoder", "decoder")}
GOOD = {Kind.LORA: LORA, Kind.EMBEDDING: EMBEDDING, Kind.VAE: VAE}


def write(path: Path, tensors: dict[str, Any], **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize("kind", list(Kind))
def test_good_files_are_known_by_their_names(tmp_path: Path, kind: Kind) -> None:
    file = inspect(kind, write(tmp_path / "Soft ink v2.safetensors", GOOD[kind]))
    assert (file.kind, file.name, file.alias) == (kind, "Soft ink v2", None)


def test_a_lora_has_the_alias_that_its_trainer_gave_it(tmp_path: Path) -> None:
    path = write(tmp_path / "ink.safetensors", LORA, ss_output_name="Ink")
    assert inspect(Kind.LORA, path).alias == "Ink"


BAD: list[tuple[Kind, dict[str, Any], str]] = [
    (Kind.LORA, {f"{K}.lora_down.weight": torch.zeros(4, 2048)}, "2048"),
    (Kind.LORA, {"lora_te2_text_model_x.lora_down.weight": torch.zeros(4, 4)}, "SDXL"),
    (Kind.LORA, EMBEDDING, "embedding"),
    (Kind.LORA, VAE, "VAE"),
    (Kind.LORA, {"model.diffusion_model.x": torch.zeros(1)}, "checkpoint"),
    (Kind.EMBEDDING, {"clip_g": torch.zeros(2, 1280), "clip_l": torch.zeros(2, 768)}, "SDXL"),
    (Kind.EMBEDDING, {"emb_params": torch.zeros(2, 1024)}, "1024"),
    (Kind.EMBEDDING, LORA, "LoRA"),
    (Kind.VAE, LORA, "LoRA"),
    (Kind.VAE, {"decoder.conv_in.weight": torch.zeros(1)}, "half a VAE"),
    (Kind.VAE, {**VAE, "model.diffusion_model.x": torch.zeros(1)}, "whole checkpoint"),
]


@pytest.mark.parametrize(("kind", "tensors", "message"), BAD)
def test_the_wrong_kind_is_refused_by_what_it_is(
    tmp_path: Path, kind: Kind, tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadWeights, match=message) as refused:
        inspect(kind, write(tmp_path / "wrong.safetensors", tensors))
    assert "wrong.safetensors" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.bin"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(BadWeights, match="pickle"):
        inspect(Kind.LORA, tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.safetensors", LORA)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadWeights, match="truncated"):
        inspect(Kind.LORA, path)


def test_a_name_that_a_tag_could_not_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="rename it"):
        inspect(Kind.LORA, write(tmp_path / "a<b>.safetensors", LORA))


def test_a_shelf_finds_what_is_put_there_later(tmp_path: Path) -> None:
    now = 0.0
    shelf = Shelf(Kind.LORA, tmp_path, clock=lambda: now)
    assert shelf.files() == {}
    write(tmp_path / "styles" / "ink.safetensors", LORA, ss_output_name="Inky")
    (tmp_path / "old.pt").write_bytes(b"pickle")
    assert shelf.files() == {}  # what was seen is believed for a moment
    now = 10.0
    assert list(shelf.files()) == ["ink"]
    assert shelf.find("INKY").name == shelf.find("ink").name == "ink"
    with pytest.raises(WeightsMissing, match="no lora named 'inc'"):
        shelf.find("inc")


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert Shelf(Kind.VAE, tmp_path / "nowhere").files() == {}
    assert Shelf(Kind.VAE, None).files() == {}
