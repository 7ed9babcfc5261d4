"""The benchmarks themselves: every figure it promises is there, and it ends where memory or time does. No timing is judged."""

import copy
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import numpy as np
import pytest
import torch

from shared.files import checkpoints
from tests.bench import measure, report, residency, swapping
from tests.bench.measure import COMPILED, Bench, Setting, unet_flops
from tests.bench.residency import Order
from tests.support import recolored
from tests.support.studio import CPU, demo, small
from tests.support.waiting import LIMIT_S
from worker.diffusion.checkpoint_loader import SD15_DIR
from worker.diffusion.compiled import CompiledUNet

SETTING = Setting(side=64, steps=1, clients=2, images=3, repeats=1, batches=(1, 2))


def test_the_report_has_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    compilers: set[str] = set()

    def backend(graph: Any, _examples: Any) -> Any:
        compilers.add(current_thread().name)
        return graph

    monkeypatch.setitem(measure.MATMUL_SIDE, "cpu", 128)
    monkeypatch.setattr(measure, "CompiledUNet", partial(CompiledUNet, backend=backend))
    row = {"checkpoint": "demo", **Bench(small(), replace(SETTING, compiled=True)).run()}
    assert compilers == {"compiler"}  # else a measurement has waited for it
    result = report.summary([row], CPU)
    assert result["rows"] == [row]
    assert set(report.HEADLINES) <= set(result)
    found = {name for name in report.HEADLINES if result[name] is not None}
    assert found == {*report.HEADLINES} - {"gain_4", "gain_8", "gain_16"}  # which were not asked for
    assert all(math.isfinite(row[name]) for name in (*found, *COMPILED, "matmul_share", "farm_over_unet_loop"))
    assert row["unet_ms"].keys() == {"1", "2"}
    assert json.loads(json.dumps(result)) == {**result, "rows": [{**row, "batches": [1, 2]}]}
    table = report.table(result)
    assert "demo 64 px" in table
    assert "UNet ms, batch 2" in table


def test_what_does_not_fit_into_memory_or_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    compilers: list[CompiledUNet] = []
    may_compile = Event()

    def backend(graph: Any, _inputs: Any) -> Any:
        may_compile.wait(LIMIT_S)
        return graph

    def compiler(*args: Any, **kwargs: Any) -> CompiledUNet:
        compilers.append(CompiledUNet(*args, **kwargs, backend=backend))
        return compilers[-1]

    monkeypatch.setitem(measure.MATMUL_SIDE, "cpu", 128)
    monkeypatch.setattr(measure, "CompiledUNet", compiler)

    def full(_unet: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("no more")

    tight = replace(small(), unet=copy.deepcopy(small().unet))
    tight.unet.register_forward_pre_hook(full)
    wanted = replace(SETTING, clients=4, images=6, repeats=50, batches=(1, 2, 4), compiled=True)
    row = {"checkpoint": "demo", **Bench(tight, wanted, until=0.0).run()}
    assert (row["rounds"], row["images"], row["clients"]) == (1, 1, 1)
    assert row["unet_ms"]["2"] > 0
    assert row["unet_ms"]["4"] is row["gain_4"] is row["compiled_images_per_s"] is None
    assert "–" in report.table(report.summary([row], CPU))
    may_compile.set()
    assert compilers[0].settle()  # else an exit meanwhile would crash


def test_a_static_batch_is_as_large_as_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(demo(), replace(SETTING, clients=9, batches=(1, 16)))
    tried: list[int] = []

    def image(_steps: int, images: int) -> None:
        tried.append(images)
        if images > 3:
            raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(bench, "_bare_image", image)
    assert bench._static_images() == 2
    assert tried == [9, 4, 2]


def test_a_slow_device_gets_less_to_do() -> None:
    wanted = Setting(side=512, steps=20, clients=32, images=64)
    assert wanted.within(math.inf, 0.5) == wanted
    assert wanted.within(270.0, 0.5) == wanted
    slow = wanted.within(270.0, 4.0)
    assert slow.images * 4.0 < 0.2 * 270
    assert slow.clients == slow.images


def test_the_arithmetic_of_sd15_is_what_was_counted_by_hand() -> None:
    config = json.loads((SD15_DIR / "unet" / "config.json").read_bytes())
    assert unet_flops(config, 64, samples=1) == pytest.approx(803.3e9, rel=1e-3)


def test_swaps_are_timed_beside_copies_and_pictures_compared(tmp_path: Path) -> None:
    files = [checkpoints.inspect(recolored.write(tmp_path, index)) for index in range(2)]
    found = swapping.measured(files, swapping.options().parse_args([str(tmp_path), "--swaps", "2", "--pictures"]))
    assert all(found[name] > 0 for name in ("whole_s", "in_place_s", "plain_copy_s", "swap_over_copy"))
    assert (found["swaps"], found["pictures"], found["pictures_changed"]) == (2, 2, 0)
    page = residency.table({"swaps": found, "pair": {"disk_over_ram": 20.0, "ram": found, "disk": found}})
    assert [line.split()[-1] for line in page.splitlines()].count("none") == 2


def test_a_picture_of_another_checkpoint_is_counted() -> None:
    demo = np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    shown = [(Order(named, 0), recolored.shown(demo, made)) for named, made in ((3, 3), (3, 5), (0, 0))]
    assert residency.strangers(shown, [(Order(0, 0), demo)]) == 1


def test_the_first_checkpoints_are_named_most() -> None:
    named = [order.checkpoint for order in residency.zipf(40, 1000)]
    assert named.count(0) > 2 * named.count(3) > 2 * named.count(15) > 0
