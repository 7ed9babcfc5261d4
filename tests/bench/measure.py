"""The measurements: the engine and a bare pipeline by turns, one image at a time and under load; the UNet by batch size."""

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from torch.utils.flop_counter import FlopCounterMode

from shared.samplers import Sampler, Schedule
from tests.ceiling import Ceiling
from worker.diffusion.checkpoint import Checkpoint
from worker.engine.engine import Engine
from worker.engine.request import ImageSpec, Pass
from worker.engine.runner import DiffusionRunner

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry"
GUIDANCE = 7.0
BATCHES = (1, 2, 4, 8, 16)
WARM_UP_STEPS = 2
MATMUL_SIDE = {"cuda": 8192, "cpu": 1536}


@dataclass(frozen=True, slots=True)
class Setting:
    """One size and load: `images` are rendered under load by `clients` at a time; every image is guided, two samples a step."""

    side: int
    steps: int
    clients: int
    images: int
    repeats: int = 5
    batches: tuple[int, ...] = BATCHES


class Bench:
    """One checkpoint at one setting."""

    def __init__(self, checkpoint: Checkpoint, setting: Setting) -> None:
        self._checkpoint = checkpoint
        self._setting = setting
        self._runner = DiffusionRunner.of(checkpoint)
        self._pipeline = _bare(checkpoint)
        self._spec = ImageSpec(
            passes=(
                Pass(
                    prompt=PROMPT,
                    negative_prompt=NEGATIVE,
                    width=setting.side,
                    height=setting.side,
                    steps=setting.steps,
                    guidance_scale=GUIDANCE,
                    sampler=Sampler.EULER,
                    schedule=Schedule.UNIFORM,
                ),
            ),
            seed=1,
        )

    def run(self) -> dict[str, Any]:
        """Measure everything and return one row of raw figures and ratios."""
        engine = Engine(self._runner, limits=Ceiling(2 * max(self._setting.batches)))
        engine.start()
        try:
            self._warm_up(engine)
            peak = self._peak_mib(engine)
            lone, bare, loaded, static, *calls = self._by_turns(
                lambda: self._lone(engine),
                self._bare_image,
                lambda: self._loaded(engine),
                lambda: self._bare_image(images=self._static_images),
                *map(self._unet_call, self._setting.batches),
            )
            overhead = self._overhead_share(engine)
        finally:
            engine.stop()
        unet_s = dict(zip(self._setting.batches, map(statistics.median, calls), strict=True))
        per_image = {batch: seconds / batch for batch, seconds in unet_s.items()}
        loaded_s = statistics.median(loaded) / self._setting.images
        bare_s = statistics.median(bare)
        return {
            **asdict(self._setting),
            "bare_latency_s": statistics.median(bare),
            "lone_latency_s": statistics.median(lone),
            "lone_latency_over_bare": statistics.median(lone) / statistics.median(bare),
            "farm_over_bare_idle": sum(bare) / sum(lone),
            "farm_images_per_s": 1 / loaded_s,
            "bare_images_per_s": 1 / bare_s,
            "farm_over_bare_loaded": bare_s / loaded_s,
            "farm_over_unet_loop": self._setting.steps * min(per_image.values()) / loaded_s,
            "overhead_share": overhead,
            "unet_ms": {str(batch): seconds * 1000 for batch, seconds in unet_s.items()},
            "matmul_share": self._unet_flops() / min(per_image.values()) / self._matmul_flops_per_s(),
            **{f"gain_{batch}": per_image[1] / per_image[batch] for batch in self._setting.batches[1:]},
            "static_batch_images_per_s": self._static_images / statistics.median(static),
            "peak_mib": peak,
        }

    def _warm_up(self, engine: Engine[Any, Any]) -> None:
        short = replace(self._spec, passes=(replace(self._spec.passes[0], steps=WARM_UP_STEPS),))
        engine.submit(short).result(None)
        self._bare_image(steps=WARM_UP_STEPS)

    def _by_turns(self, *rivals: Callable[[], object]) -> list[list[float]]:
        """Time each rival as often, one after the other, so that what else the machine does meets all alike."""
        times: list[list[float]] = [[] for _ in rivals]
        for _ in range(self._setting.repeats):
            for taken, rival in zip(times, rivals, strict=True):
                taken.append(self._timed(rival))
        return times

    def _lone(self, engine: Engine[Any, Any]) -> None:
        engine.submit(self._spec).result(None)

    def _bare_image(self, steps: int | None = None, images: int = 1) -> None:
        self._pipeline(
            [PROMPT] * images,
            negative_prompt=[NEGATIVE] * images,
            width=self._setting.side,
            height=self._setting.side,
            num_inference_steps=steps or self._setting.steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(images)],
            output_type="np",
        )

    def _loaded(self, engine: Engine[Any, Any]) -> None:
        """Let `clients` each wait for an image and ask for the next, until all `images` are done."""

        def render(seed: int) -> None:
            engine.submit(replace(self._spec, seed=seed)).result(None)

        with ThreadPoolExecutor(self._setting.clients) as clients:
            list(clients.map(render, range(self._setting.images)))

    @property
    def _static_images(self) -> int:
        """The bare pipeline's fixed batch: as many images as there are clients, up to the largest of the table."""
        return min(max(self._setting.batches), self._setting.clients)

    def _unet_call(self, images: int) -> Callable[[], object]:
        """Return a UNet call for so many guided images, two samples each: the engine's raw material. It was made once."""
        checkpoint, latent = self._checkpoint, self._setting.side // 8
        width = checkpoint.unet.config.cross_attention_dim
        x = torch.randn(2 * images, 4, latent, latent).to(checkpoint.device, checkpoint.dtype)
        context = torch.randn(2 * images, 77, width).to(checkpoint.device, checkpoint.dtype)
        timesteps = torch.full((2 * images,), 500.0, device=checkpoint.device)
        call: Callable[[], object] = torch.inference_mode()(_call(checkpoint.unet, x, timesteps, context))
        call()
        return call

    def _unet_flops(self) -> float:
        """Return the arithmetic of a UNet call for one guided image, as torch counts it."""
        call = self._unet_call(1)
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    def _matmul_flops_per_s(self) -> float:
        """Return how fast the device multiplies large square matrices: the ceiling of everything above."""
        checkpoint = self._checkpoint
        side = MATMUL_SIDE[checkpoint.device.type]
        a, b = (torch.randn(side, side).to(checkpoint.device, checkpoint.dtype) for _ in range(2))
        a @ b
        return 2 * side**3 / min(self._timed(lambda: a @ b) for _ in range(10))

    def _overhead_share(self, engine: Engine[Any, Any]) -> float:
        """Return the share of a lone image's time that is spent outside UNet, VAE and text encoder."""
        checkpoint = self._checkpoint
        with stopwatch(checkpoint.device, checkpoint.unet, checkpoint.vae.decoder, checkpoint.text_encoder) as inside:
            total = self._timed(lambda: self._lone(engine))
        return 1 - sum(inside) / total

    def _peak_mib(self, engine: Engine[Any, Any]) -> float:
        if self._checkpoint.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._lone(engine)
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def _timed(self, act: Callable[[], object]) -> float:
        self._settle()
        began = time.perf_counter()
        act()
        self._settle()
        return time.perf_counter() - began

    def _settle(self) -> None:
        if self._checkpoint.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def stopwatch(device: torch.device, *modules: Any) -> Iterator[list[float]]:
    """Collect the seconds spent inside modules. Waits for a GPU before and after each, so nothing overlaps meanwhile."""
    spent: list[float] = []
    begun: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def before(*_: Any) -> None:
        begun.append(now())

    def after(*_: Any) -> None:
        spent.append(now() - begun.pop())

    hooks = [
        hook
        for module in modules
        for hook in (module.register_forward_pre_hook(before), module.register_forward_hook(after))
    ]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def _call(unet: Any, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> Callable[[], object]:
    return lambda: unet(x, timesteps, encoder_hidden_states=context, return_dict=False)


def _bare(checkpoint: Checkpoint) -> Any:
    pipeline: Any = StableDiffusionPipeline(
        vae=checkpoint.vae,
        text_encoder=checkpoint.text_encoder,
        tokenizer=checkpoint.tokenizer,
        unet=checkpoint.unet,
        scheduler=EulerDiscreteScheduler.from_config(checkpoint.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
