"""What is a checkpoint and what only looks like one, from files that hold a header and zeros."""

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadCheckpoint
from shared.files import checkpoints
from tests.support.headers import CONTEXT, SD15, UNET, write

DEMO = Path(__file__).parents[3] / "deploy/standalone/checkpoints/farm-demo.safetensors"


def test_the_demo_checkpoint_is_one() -> None:
    file = checkpoints.inspect(DEMO)
    assert (file.name, file.layout, file.config_dir) == ("farm-demo", "single_file", DEMO.with_suffix(".config"))
    assert (file.dtype, file.in_channels, file.size_bytes) == ("F16", 4, DEMO.stat().st_size)


def test_sd15_is_accepted(tmp_path: Path) -> None:
    file = checkpoints.inspect(write(tmp_path / "v1-5-pruned-emaonly.safetensors", SD15))
    assert (file.name, file.config_dir) == ("v1-5-pruned-emaonly", None)


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ({"conditioner.embedders.0.x": [1]}, "SDXL"),
        ({"cond_stage_model.model.ln_final.weight": [1], **SD15}, "Stable Diffusion 2"),
        ({"lora_unet_down_blocks_0.lora_up.weight": [1]}, "LoRA"),
        ({"first_stage_model.decoder.conv_in.weight": [1]}, "VAE"),
        ({"decoder.conv_in.weight": [1]}, "VAE"),
        ({"some.other.weight": [1]}, "no Stable Diffusion 1.5 UNet"),
        ({name: shape for name, shape in SD15.items() if name.startswith(UNET)}, "VAE or text encoder is missing"),
        ({**SD15, UNET + "input_blocks.0.0.weight": [32, 8, 3, 3]}, "takes 8 channels"),
        ({**SD15, UNET + "input_blocks.0.0.weight": [32]}, "takes 0 channels"),
        ({**SD15, CONTEXT: [32, 1024]}, "1024 wide"),
        ({**SD15, CONTEXT: []}, "0 wide"),
        ({}, "no Stable Diffusion 1.5 UNet"),
    ],
)
def test_the_wrong_architecture_is_refused_in_one_line(
    tmp_path: Path, shapes: dict[str, list[int]], complaint: str
) -> None:
    path = write(tmp_path / "x.safetensors", shapes)
    with pytest.raises(BadCheckpoint, match=complaint) as refused:
        checkpoints.inspect(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cut", [1, 700, 2500])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    with pytest.raises(BadCheckpoint, match="truncated"):
        checkpoints.inspect(write(tmp_path / "x.safetensors", SD15, cut=cut))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.ckpt", b"\x80\x02}", "pickle"),
        ("x.pt", b"\x80\x02}", "pickle"),
        ("x.CKPT", b"\x80\x02}", "pickle"),
        ("x.safetensors", b"", "header is unreadable"),
        ("x.safetensors", b"\x80\x02}q\x00.", "header is unreadable"),
        ("x.safetensors", b"\xff" * 100, "header is unreadable"),
        ("x.safetensors", struct.pack("<Q", 50) + b"{}", "truncated inside its header"),
        ("x.safetensors", struct.pack("<Q", 2) + b"[]", "header is unreadable"),
        ("x.safetensors", struct.pack("<Q", 8) + b'{"a": 1}', "header is unreadable"),
        ("x.txt", b"hello", "not a .safetensors file"),
        ("a b.safetensors", b"", "rename it"),
        ("x;rm.safetensors", b"", "rename it"),
    ],
)
def test_what_is_no_weights_file_is_refused(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=complaint):
        checkpoints.inspect(path)


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F16", "shape": [1_000_000], "data_offsets": [0, 4]},
        {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]},
        {"dtype": "U8", "shape": [-4], "data_offsets": [0, 4]},
        {"dtype": "U8", "shape": [4], "data_offsets": [0]},
        {"dtype": "U8", "shape": "four", "data_offsets": [0, 4]},
        {"dtype": ["U8"], "shape": [4], "data_offsets": [0, 4]},
        {"shape": [4], "data_offsets": [0, 4]},
        {"dtype": "U8", "shape": [4]},
        4,
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, tensor: object) -> None:
    raw = json.dumps({"w": tensor}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"1234")
    with pytest.raises(BadCheckpoint, match="header is unreadable"):
        checkpoints.inspect(path)


@pytest.mark.parametrize("content", ["{}", '{"cross_attention_dim": "wide"}', "[]", "{"])
def test_a_config_that_says_no_width_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path / "x.safetensors", SD15)
    (tmp_path / "x.config/unet").mkdir(parents=True)
    (tmp_path / "x.config/unet/config.json").write_text(content)
    with pytest.raises(BadCheckpoint, match=r"x\.config/unet/config\.json"):
        checkpoints.inspect(tmp_path / "x.safetensors")


def test_a_pipe_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(BadCheckpoint, match="not a regular file"):
        checkpoints.inspect(tmp_path / "x.safetensors")


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match="no-such-user"):
        checkpoints.inspect(Path("~no-such-user/x.safetensors"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="no such file"):
        checkpoints.inspect(tmp_path / "gone.safetensors")


@given(st.binary(max_size=300))
def test_random_bytes_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint):
        checkpoints.inspect(path)


def folder(path: Path, *, pipeline: str = "StableDiffusionPipeline", unet: dict[str, object] | None = None) -> Path:
    for part in ("unet", "vae", "text_encoder"):
        (path / part).mkdir(parents=True)
        write(path / part / "model.safetensors", {"conv_in.weight": [4]})
    (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (path / "unet/config.json").write_text(json.dumps(unet or {"in_channels": 4, "cross_attention_dim": 768}))
    (path / "text_encoder/config.json").write_text('{"hidden_size": 768}')
    return path


def test_a_diffusers_folder_is_accepted(tmp_path: Path) -> None:
    file = checkpoints.inspect(folder(tmp_path / "mine"))
    assert (file.name, file.layout, file.variant, file.in_channels) == ("mine", "diffusers", None, 4)


def test_a_folder_with_nothing_but_half_precision_is_accepted(tmp_path: Path) -> None:
    path = folder(tmp_path / "mine")
    for file in path.glob("*/model.safetensors"):
        file.rename(file.with_name("model.fp16.safetensors"))
    assert checkpoints.inspect(path).variant == "fp16"


def test_every_file_of_a_folder_is_looked_at(tmp_path: Path) -> None:
    path = folder(tmp_path / "sharded")
    write(path / "vae/model-00002-of-00002.safetensors", {"w": [4]}, cut=1)
    with pytest.raises(BadCheckpoint, match=r"00002-of-00002\.safetensors: truncated"):
        checkpoints.inspect(path)


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="StableDiffusionXLPipeline"):
        checkpoints.inspect(folder(tmp_path / "xl", pipeline="StableDiffusionXLPipeline"))
    with pytest.raises(BadCheckpoint, match="Stable Diffusion 2"):
        checkpoints.inspect(folder(tmp_path / "sd2", unet={"in_channels": 4, "cross_attention_dim": 1024}))
    with pytest.raises(BadCheckpoint, match="takes 8 channels"):
        checkpoints.inspect(folder(tmp_path / "pix2pix", unet={"in_channels": 8, "cross_attention_dim": 768}))
    with pytest.raises(BadCheckpoint, match="2048 wide, its text encoder writes 768"):
        checkpoints.inspect(folder(tmp_path / "wide", unet={"in_channels": 4, "cross_attention_dim": 2048}))
    other = folder(tmp_path / "other")
    write(other / "unet/model.safetensors", {"w": [4]})
    with pytest.raises(BadCheckpoint, match="not those of a diffusers UNet"):
        checkpoints.inspect(other)
    pickled = folder(tmp_path / "pickled")
    (pickled / "vae/model.safetensors").rename(pickled / "vae/model.bin")
    with pytest.raises(BadCheckpoint, match=r"pickled \.bin"):
        checkpoints.inspect(pickled)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadCheckpoint, match=r"no model_index\.json"):
        checkpoints.inspect(tmp_path / "empty")


def test_scanning_keeps_the_good_and_names_the_bad(tmp_path: Path) -> None:
    write(tmp_path / "b.safetensors", SD15)
    write(tmp_path / "a.safetensors", SD15)
    folder(tmp_path / "c")
    folder(tmp_path / "a")
    write(tmp_path / "xl.safetensors", {"conditioner.embedders.0.x": [1]})
    write(tmp_path / "odd.safetensors", {**SD15, CONTEXT: []})
    write(tmp_path / "strange.safetensors", SD15)
    (tmp_path / "strange.config/unet").mkdir(parents=True)
    (tmp_path / "strange.config/unet/config.json").write_text("{}")
    (tmp_path / "old.ckpt").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "b.config").mkdir()
    (tmp_path / "b.config/model_index.json").write_text("{}")
    (tmp_path / "b.config/unet").mkdir()
    (tmp_path / "b.config/unet/config.json").write_text('{"cross_attention_dim": 768}')
    found, refused = checkpoints.scan(tmp_path)
    assert [file.name for file in found] == ["a", "b", "c"]
    assert len(refused) == 5
    assert any("is taken by" in str(error) for error in refused)
