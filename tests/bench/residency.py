"""`python -m tests.bench.residency`: what many checkpoints cost two gpu workers, and what a swap costs one.

A farm of real processes renders the same jobs of several clients by turns with one checkpoint and with many, which are named by
Zipf's law, in short slices, so that a busy machine slows both alike. The checkpoints are made from the demo one, and each colours
its pictures in its own way, by which it is told whose weights made a picture. Then swaps are timed on the device of one worker,
of the demo's size and of SD1.5's with random weights, each beside a plain copy of as many bytes. All processes share this
machine's cores. Prints ratios with their goals, and writes `.farm/bench/residency.json`. Asserts nothing: a timing is no test.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from PIL import Image

from api.client import Farm, Job
from deploy.standalone import ports, processes, serving
from deploy.standalone.farm import engines_only
from deploy.standalone.serving import PlannedWorker
from deploy.standalone.supervisor import Supervisor
from shared.files import checkpoints
from tests.bench.memory import MIB, Memory
from tests.bench.swapping import weights_bytes
from tests.support import full_size, recolored
from tests.support.recolored import Pixels

OUT = Path(".farm/bench/residency.json")
HOST = "127.0.0.1"
WORKERS = ("gpu0", "gpu1")
SEEDS = 4
KIN = 8  # checkpoints of the demo's size among which one device swaps
PAIR = 2
KIN_SWAPS = 100
HELD_S = 50.0


@dataclass(frozen=True, slots=True)
class Order:
    """One job: a picture of a checkpoint, by its index."""

    checkpoint: int
    seed: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A farm that runs, and its gpu workers by pid."""

    url: str
    workers: Sequence[int]

    @property
    def swaps(self) -> int:
        """How often its workers have swapped."""
        listed = httpx.get(f"{self.url}/v1/workers").raise_for_status().json()["workers"]
        return sum(one["swaps"] for one in listed)


@dataclass(frozen=True, slots=True)
class Slice:
    """Jobs that were rendered one after the other by each client, and how long that took."""

    orders: Sequence[Order]
    jobs: Sequence[Job]
    took_s: float

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return len(self.jobs) / self.took_s


def main() -> None:
    """Measure and print."""
    asked = options().parse_args()
    result = {"date": datetime.now(UTC).date().isoformat(), "cores": psutil.cpu_count(), **measured(asked)}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))  # noqa: T201 - a command line tool
    print(table(result))  # noqa: T201


def options() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.residency", description=__doc__)
    parser.add_argument("--only", choices=["farm", "swaps", "pair"], help="one part instead of all")
    parser.add_argument("--checkpoints", type=int, default=40)
    parser.add_argument("--keeps", type=int, default=24, help="how many of them have room in a worker's FARM_RAM_BYTES")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=60, help="in each slice")
    parser.add_argument("--rounds", type=int, default=4, help="slices of each kind")
    parser.add_argument("--images", type=int, default=1, help="of each job")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--swaps", type=int, default=20, help="of the full-size pair")
    parser.add_argument("--dtype", choices=["fp32", "fp16"], default="fp32", help="of the full-size pair in memory")
    return parser


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """Return all figures that were asked for."""
    parts = {"farm": farm, "swaps": kin_swaps, "pair": pair}
    return {name: part(asked) for name, part in parts.items() if asked.only in {None, name}}


def farm(asked: argparse.Namespace) -> dict[str, Any]:
    """Render with one checkpoint and with many by turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [recolored.write(_made(folder / "checkpoints"), index) for index in range(asked.checkpoints)]
        ram_bytes = asked.keeps * weights_bytes(checkpoints.inspect(files[0]), torch.float32)
        with running(folder, ram_bytes) as stage:
            return compared(stage, asked, ram_bytes)


def compared(stage: Stage, asked: argparse.Namespace, ram_bytes: int) -> dict[str, Any]:
    """Return the rate with many checkpoints over that with one, and what became of memory and pictures."""
    many = zipf(asked.checkpoints, asked.jobs * asked.rounds)
    every = [Order(index, index % SEEDS) for index in range(asked.checkpoints)]
    alone = [Order(0, seed) for seed in range(SEEDS)] * asked.clients
    with ExitStack() as stack:
        memories = [stack.enter_context(Memory(pid)) for pid in stage.workers]
        demos = pictures(stage, rendered(stage, alone, asked))
        one_mib = [memory.peak_mib for memory in memories]
        rendered(stage, every, asked)
        swaps = stage.swaps
        slices: dict[str, list[Slice]] = {"one": [], "many": []}
        for begin in range(0, len(many), asked.jobs):
            orders = many[begin : begin + asked.jobs]
            slices["one"].append(rendered(stage, [Order(0, order.seed) for order in orders], asked))
            slices["many"].append(rendered(stage, orders, asked))
        more_swaps = stage.swaps - swaps
    if not all(psutil.pid_exists(pid) for pid in stage.workers):
        raise SystemExit(
            "A gpu worker died meanwhile: these figures would be another's. A machine that starves it is one reason."
        )
    shown = [(order, picture) for one in slices["many"] for order, picture in pictures(stage, one)]
    return {
        "checkpoints": asked.checkpoints,
        "jobs": {name: sum(len(one.jobs) for one in done) for name, done in slices.items()},
        "jobs_per_s": {name: round(_rate(done), 3) for name, done in slices.items()},
        "many_over_one": round(_rate(slices["many"]) / _rate(slices["one"]), 2),
        "many_over_one_by_slice": [
            round(many.rate / one.rate, 2) for one, many in zip(slices["one"], slices["many"], strict=True)
        ],
        "swaps_per_job": round(more_swaps / len(many), 2),
        "pictures_of_another_checkpoint": strangers(shown, demos),
        "bound_mib": round(ram_bytes / MIB),
        "peak_mib": {
            "one": [round(one) for one in one_mib],
            "many": [round(memory.peak_mib) for memory in memories],
        },
        "peak_over_bound": round(
            max((memory.peak_mib - one) * MIB / ram_bytes for memory, one in zip(memories, one_mib, strict=True)),
            3,
        ),
    }


def zipf(checkpoints: int, jobs: int) -> list[Order]:
    """Draw jobs of checkpoints of which the n-th is named n times less than the first."""
    chance = random.Random(1)
    weights = [1 / (1 + index) for index in range(checkpoints)]
    return [
        Order(index, number % SEEDS) for number, index in enumerate(chance.choices(range(checkpoints), weights, k=jobs))
    ]


def rendered(stage: Stage, orders: Sequence[Order], asked: argparse.Namespace) -> Slice:
    """Have clients render jobs; each submits the next one when its own has ended."""
    about = {"width": asked.side, "height": asked.side, "steps": asked.steps, "num_images": asked.images}

    def one(order: Order) -> Job:
        job = client.submit(
            **about,
            prompt="a red circle on a blue background",
            checkpoint=recolored.name(order.checkpoint),
            seed=order.seed,
            wait_s=HELD_S,
        )
        done = job if job.state.is_final else client.wait(job.id)
        assert done.state == "succeeded", done
        return done

    with Farm(stage.url) as client, ThreadPoolExecutor(asked.clients) as pool:
        began = time.perf_counter()
        jobs = list(pool.map(one, orders))
        return Slice(orders, jobs, time.perf_counter() - began)


def pictures(stage: Stage, done: Slice) -> list[tuple[Order, Pixels]]:
    """Fetch the first picture of each job."""
    with Farm(stage.url) as client:
        return [
            (order, np.asarray(Image.open(BytesIO(client.image(job)))))
            for order, job in zip(done.orders, done.jobs, strict=True)
        ]


def strangers(shown: Sequence[tuple[Order, Pixels]], demos: Sequence[tuple[Order, Pixels]]) -> int:
    """Count pictures whose colours are those of another checkpoint than was named."""
    by_seed = {order.seed: picture for order, picture in demos}
    return sum(recolored.seen(picture, by_seed[order.seed]) != order.checkpoint for order, picture in shown)


def kin_swaps(_asked: argparse.Namespace) -> dict[str, Any]:
    """Swap among checkpoints of the demo's size."""
    with tempfile.TemporaryDirectory() as name:
        for index in range(KIN):
            recolored.write(Path(name), index)
        return swapped(Path(name), "--keeps", str(KIN), "--swaps", str(KIN_SWAPS), "--pictures")


def pair(asked: argparse.Namespace) -> dict[str, Any]:
    """Swap between two checkpoints of SD1.5's size, from RAM and from disk."""
    with tempfile.TemporaryDirectory() as name:
        for seed in range(PAIR):
            full_size.write(Path(name) / f"full-size-{seed}.safetensors", seed)
        about = ("--swaps", str(asked.swaps), "--dtype", asked.dtype)
        tiers = {
            tier: swapped(Path(name), "--keeps", str(keeps), *about) for tier, keeps in (("ram", PAIR), ("disk", 1))
        }
    return {"disk_over_ram": round(tiers["disk"]["whole_s"] / tiers["ram"]["whole_s"], 1), **tiers}


def swapped(folder: Path, *about: str) -> dict[str, Any]:
    """Swap on a device in a process of its own."""
    argv = (sys.executable, "-m", "tests.bench.swapping", str(folder), *about)
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))  # noqa: T201 - what comes next may take minutes
    return found


@contextmanager
def running(folder: Path, ram_bytes: int) -> Iterator[Stage]:
    """Run the engines, an api, a courier and two gpu workers with all checkpoints of a folder."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    port = ports.pick(HOST)
    url = f"http://{HOST}:{port}"
    more = {
        "FARM_CHECKPOINT_DIR": str(folder / "checkpoints"),
        "FARM_PRELOAD": recolored.name(0),
        "FARM_RAM_BYTES": str(ram_bytes),
        "FARM_DEVICE": "cpu",
        "FARM_CACHE_DIR": str(folder / "cache"),
        "FARM_PROFILE_SECONDS": "0",
    }
    with ExitStack() as stack:
        env = {**environ, **stack.enter_context(engines_only(folder / "engines", environ)), **more}
        supervisor = stack.enter_context(Supervisor(_made(folder / "logs"), folder / "run.json", lambda _event: None))
        supervisor.start(processes.migration(env))
        supervisor.start(
            processes.api(env, HOST, port, url),
            processes.courier(env),
            *(processes.gpu_worker(env, PlannedWorker(name, serving.SLOTS_CPU, {}), url) for name in WORKERS),
        )
        pids = supervisor.pids()
        yield Stage(url, [pids[name] for name in WORKERS])


def table(result: Mapping[str, Any]) -> str:
    """Return the ratios with their goals."""
    goals = [
        ("farm", ("many_over_one",), "jobs a second, many checkpoints over one", "at least 0.7"),
        ("farm", ("pictures_of_another_checkpoint",), "pictures of another checkpoint than was named", "0"),
        ("farm", ("peak_over_bound",), "peak memory beside one checkpoint, over FARM_RAM_BYTES", "at most 1"),
        ("swaps", ("swap_over_copy",), "a swap from RAM over a plain copy, demo's size", "at most 2"),
        ("swaps", ("pictures_changed",), "pictures changed by 100 swaps", "0"),
        ("pair", ("ram", "swap_over_copy"), "the same, full size", "at most 2"),
        ("pair", ("disk_over_ram",), "a swap from disk over one from RAM, full size", ""),
        ("pair", ("ram", "growth_mib"), "MiB more after the swaps from RAM", "none"),
        ("pair", ("disk", "growth_mib"), "MiB more after the swaps from disk", "none"),
        ("pair", ("ram", "peak_over_bound"), "peak memory over FARM_RAM_BYTES for two", "at most 1"),
        ("pair", ("disk", "peak_over_bound"), "peak memory over FARM_RAM_BYTES for one", "at most 1"),
    ]
    lines = []
    for part, path, what, goal in goals:
        found: Any = result.get(part)
        for key in path if found else ():
            found = found[key]
        if found is not None:
            lines.append(f"{what:58}{found:>10}  {goal}")
    return "\n".join(lines)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _rate(done: Sequence[Slice]) -> float:
    return sum(len(one.jobs) for one in done) / sum(one.took_s for one in done)


if __name__ == "__main__":
    main()
