"""Loading weights: the original single-file layout at full size, half precision, diffusers folders, and what must be refused."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shared.errors import BadCheckpoint
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile
from shared.vocabulary.samplers import Sampler, Schedule
from tests.support import full_size as full_size_files
from tests.support import kin
from tests.support.studio import spec
from tests.support.waiting import LIMIT_S
from worker.diffusion import checkpoint_loader
from worker.diffusion import plan as plans
from worker.engine.engine import run_alone
from worker.engine.runner import DiffusionRunner

DEMO = Path(__file__).parents[3] / "deploy/standalone/checkpoints/farm-demo.safetensors"
MAPS = Path("/proc/self/maps")
CPU = torch.device("cpu")
TINY = spec(prompt="a red circle", steps=1, width=64, height=64, sampler=Sampler.EULER_A, schedule=Schedule.UNIFORM)


def test_the_demo_checkpoint_loads_in_half_precision() -> None:
    loaded = checkpoint_loader.load(checkpoints.inspect(DEMO), CPU, torch.float16)
    assert loaded.unet.dtype == torch.float16


def test_fp32_and_fp16_files_load_alike(tmp_path: Path) -> None:
    half = load_file(DEMO)
    path = tmp_path / "full.safetensors"
    save_file({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in half.items()}, path)
    shutil.copytree(DEMO.with_suffix(".config"), tmp_path / "full.config")
    ours = checkpoint_loader.load(checkpoints.inspect(path), CPU, torch.float32)
    demo = checkpoint_loader.load(checkpoints.inspect(DEMO), CPU, torch.float32)
    for part in ("unet", "vae", "text_encoder"):
        theirs = getattr(demo, part).state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in getattr(ours, part).state_dict().items())


@pytest.mark.parametrize("says", [(), ("v_pred",), ("v_pred", "ztsnr")])
def test_a_file_says_how_it_was_trained(tmp_path: Path, says: tuple[str, ...]) -> None:
    path = tmp_path / "said.safetensors"
    save_file({**load_file(DEMO), **{name: torch.tensor([]) for name in says}}, path)
    shutil.copytree(DEMO.with_suffix(".config"), tmp_path / "said.config")
    loaded = checkpoint_loader.load(checkpoints.inspect(path), CPU, torch.float32)
    plan = plans.make(Sampler.EULER, Schedule.UNIFORM, 5, loaded.scheduler_config)
    assert plan.predicts_velocity == ("v_pred" in says)
    assert (plan.start[1] > 4000) == ("ztsnr" in says)
    assert run_alone(DiffusionRunner.of(loaded), TINY).shape == (64, 64, 3)


def test_a_diffusers_folder_loads_alike(tmp_path: Path) -> None:
    demo = checkpoint_loader.load(checkpoints.inspect(DEMO), CPU, torch.float32)
    shutil.copytree(DEMO.with_suffix(".config"), tmp_path / "mine", dirs_exist_ok=True)
    demo.unet.save_pretrained(tmp_path / "mine/unet")
    demo.vae.save_pretrained(tmp_path / "mine/vae")
    demo.text_encoder.save_pretrained(tmp_path / "mine/text_encoder")
    file = checkpoints.inspect(tmp_path / "mine")
    assert file.layout == "diffusers"
    mine = checkpoint_loader.load(file, CPU, torch.float32)
    assert (run_alone(DiffusionRunner.of(mine), TINY) == run_alone(DiffusionRunner.of(demo), TINY)).all()


def saved(tmp_path: Path, **how: Any) -> Path:
    """The demo as a diffusers folder."""
    demo = checkpoint_loader.load(checkpoints.inspect(DEMO), CPU, torch.float16)
    folder = tmp_path / "mine"
    shutil.copytree(DEMO.with_suffix(".config"), folder)
    for part in ("unet", "vae", "text_encoder"):
        getattr(demo, part).save_pretrained(folder / part, **how)
    return folder


def test_a_folder_with_nothing_but_half_precision_loads(tmp_path: Path) -> None:
    file = checkpoints.inspect(saved(tmp_path, variant="fp16"))
    assert (file.variant, file.dtype) == ("fp16", "F16")
    assert run_alone(DiffusionRunner.of(checkpoint_loader.load(file, CPU, torch.float32)), TINY).shape == (64, 64, 3)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_that_lacks_a_tensor_is_refused(tmp_path: Path, part: str) -> None:
    folder = saved(tmp_path)
    weights = next((folder / part).glob("*.safetensors"))
    tensors = load_file(weights)
    lost = next(name for name in tensors if name.endswith("norm1.weight"))
    del tensors[lost]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match=f"mine: .*{lost}"):
        checkpoint_loader.load(checkpoints.inspect(folder), CPU, torch.float32)


@pytest.mark.parametrize("content", [None, b"", b"junk" * 100, DEMO.read_bytes()[:5_000_000]])
def test_a_file_that_changed_after_it_was_inspected_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "changed.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"changed\.safetensors") as refused:
        checkpoint_loader.load(replace(checkpoints.inspect(DEMO), path=path), CPU, torch.float32)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(not MAPS.exists(), reason="what a process has mapped is told by Linux alone")
@pytest.mark.parametrize("layout", ["single_file", "inpainting", "diffusers"])
def test_no_file_is_mapped(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that were cut while it is read would end the process: whoever copies weights here copies them out of memory."""
    make: dict[str, Callable[[], CheckpointFile]] = {
        "single_file": lambda: kin.recolored(tmp_path, "rgb", (0, 1, 2)),
        "inpainting": lambda: kin.inpainting(tmp_path, "nine", 0.0),
        "diffusers": lambda: checkpoints.inspect(saved(tmp_path)),
    }
    file = make[layout]()
    mapped: list[str] = []
    looked = checkpoint_loader._refuse_unset_weights

    def look(pipeline: Any) -> None:
        mapped.extend(line for line in MAPS.read_text().splitlines() if str(file.path) in line)
        looked(pipeline)

    monkeypatch.setattr(checkpoint_loader, "_refuse_unset_weights", look)
    checkpoint_loader.load(file, CPU, torch.float16)
    assert mapped == []


def test_loading_says_nothing(tmp_path: Path) -> None:
    """In a fresh process, because the libraries' notices come with their first import; no network is there to be asked."""
    program = (
        "import sys, pathlib, torch; from shared.files import checkpoints; from worker.diffusion import checkpoint_loader\n"
        "for path in sys.argv[1:]:\n"
        "    checkpoint_loader.load(checkpoints.inspect(pathlib.Path(path)), torch.device('cpu'), torch.float32)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, DEMO, saved(tmp_path)],
        cwd=DEMO.parents[3],
        env={**os.environ, "PYTHONPATH": str(DEMO.parents[3]), "HTTPS_PROXY": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.conv_out.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    ],
)
def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path, lost: str) -> None:
    tensors = load_file(DEMO)
    del tensors[lost]
    path = tmp_path / "holed.safetensors"
    save_file(tensors, path)
    shutil.copytree(DEMO.with_suffix(".config"), tmp_path / "holed.config")
    with pytest.raises(BadCheckpoint, match=r"holed\.safetensors"):
        checkpoint_loader.load(checkpoints.inspect(path), CPU, torch.float32)


def test_a_tiny_file_without_its_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "alone.safetensors"
    shutil.copy(DEMO, path)
    with pytest.raises(BadCheckpoint, match="cross-attention is 48 wide"):
        checkpoints.inspect(path)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A single file of SD1.5's true size and original key layout, random fp16 weights, 2.1 GB; removed afterwards."""
    folder = tmp_path_factory.mktemp("full-size")
    path = folder / "v1-5-pruned-emaonly.safetensors"
    yield full_size_files.write(path)
    shutil.rmtree(folder)


def test_a_full_size_sd15_file_renders(full_size: Path) -> None:
    assert 2.1e9 < full_size.stat().st_size < 2.2e9
    loaded = checkpoint_loader.load(checkpoints.inspect(full_size), CPU, torch.float16)
    assert sum(weight.numel() for weight in loaded.unet.parameters()) == 859_520_964
    assert loaded.text_encoder.config.hidden_size == 768
    assert same_as_written(loaded, full_size)
    # Half precision overflows with weights that nobody trained; loading was what had to be proved in it.
    for module in (loaded.unet, loaded.vae, loaded.text_encoder):
        module.float()
    runner = DiffusionRunner.of(checkpoint_loader.LoadedCheckpoint(**{**fields(loaded), "dtype": torch.float32}))
    assert run_alone(runner, TINY).shape == (64, 64, 3)


def fields(loaded: checkpoint_loader.LoadedCheckpoint) -> dict[str, Any]:
    return {name: getattr(loaded, name) for name in loaded.__slots__}


def same_as_written(loaded: checkpoint_loader.LoadedCheckpoint, path: Path) -> bool:
    with safe_open(path, "pt") as file:
        pairs = [
            (loaded.unet.conv_in.weight, "model.diffusion_model.input_blocks.0.0.weight"),
            (loaded.unet.conv_out.bias, "model.diffusion_model.out.2.bias"),
            (loaded.vae.decoder.conv_in.weight, "first_stage_model.decoder.conv_in.weight"),
        ]
        return all(torch.equal(weight, file.get_tensor(name)) for weight, name in pairs)
