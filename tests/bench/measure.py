"""Measurements of the engine and a bare pipeline in turn, one image at a time and under load, and of the UNet by batch size."""

import math
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from shared.vocabulary.samplers import Sampler, Schedule
from tests.support.ceiling import Ceiling
from worker.diffusion import division
from worker.diffusion.checkpoint_loader import LoadedCheckpoint
from worker.diffusion.compiled import CompiledUNet
from worker.engine.engine import Engine
from worker.engine.request import ImageSpec, Pass
from worker.engine.runner import DiffusionRunner

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry"
GUIDANCE = 7.0
BATCHES = (1, 2, 4, 8, 16)
WARM_UP_STEPS = 2
ROUND_SHARE = 0.12  # of the time left: loaded engine, bare batch and single images make about four of these a round
ROUNDS_SHARE = 0.5  # of the time left that one more round may take; the rest is for compiling
COMPILING_SHARE = 0.7
COMPILED = (
    "compiled_latency_s",
    "compiled_latency_over_bare",
    "compiled_images_per_s",
    "compiled_over_eager_loaded",
    "compiled_unet_ms_one",
    "compiled_unet_ms_full",
)
MATMUL_SIDE = {"cuda": 8192, "cpu": 1536}


@dataclass(frozen=True, slots=True)
class Setting:
    """One size and load: `images` are rendered under load by `clients` at a time; every image is guided, two samples a step.

    `share` is how much of the time that is left it may take.
    """

    side: int
    steps: int
    clients: int
    images: int
    repeats: int = 5
    batches: tuple[int, ...] = BATCHES
    compiled: bool = False
    share: float = 1.0

    def within(self, left_s: float, lone_s: float) -> "Setting":
        """Return a setting of which one round takes about half of the time that is left, if a lone image takes `lone_s`."""
        most = max(1, int(ROUND_SHARE * min(left_s, 1e6) / lone_s))
        images = min(self.images, most)
        return replace(self, images=images, clients=min(self.clients, images))


class Bench:
    """One checkpoint at one setting. What has not been measured `until` then, on the clock of `perf_counter`, is left out."""

    def __init__(self, checkpoint: LoadedCheckpoint, setting: Setting, *, until: float = math.inf) -> None:
        self._checkpoint = checkpoint
        self._setting = setting
        self._until = until
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
        """Measure everything and return one row of raw figures and ratios; None for what did not fit into memory or time."""
        with self._engine() as engine:
            self._warm_up(engine)
            peak = self._peak_mib(engine)
            self._setting = self._setting.within(self._left_s, self._timed(lambda: self._lone(engine)))
            static = self._static_images()
            fitting = {batch: call for batch in self._setting.batches if (call := self._unet_call(batch))}
            lone, bare, loaded, together, *calls = self._by_turns(
                lambda: self._lone(engine),
                self._bare_image,
                lambda: self._loaded(engine),
                lambda: self._bare_image(images=static),
                *fitting.values(),
            )
            overhead = self._overhead_share(engine)
        unet_s = dict(zip(fitting, map(statistics.median, calls), strict=True))
        per_image = {batch: seconds / batch for batch, seconds in unet_s.items()}
        loaded_s = statistics.median(loaded) / self._setting.images
        bare_s = statistics.median(bare)
        return {
            **asdict(self._setting),
            "rounds": len(bare),
            "bare_latency_s": bare_s,
            "lone_latency_s": statistics.median(lone),
            "lone_latency_over_bare": statistics.median(lone) / bare_s,
            "farm_over_bare_idle": sum(bare) / sum(lone),
            "farm_images_per_s": 1 / loaded_s,
            "bare_images_per_s": 1 / bare_s,
            "farm_over_bare_loaded": bare_s / loaded_s,
            "farm_over_unet_loop": self._setting.steps * min(per_image.values()) / loaded_s,
            "overhead_share": overhead,
            "unet_ms": {
                str(batch): 1000 * unet_s[batch] if batch in unet_s else None for batch in self._setting.batches
            },
            "matmul_share": self._unet_flops() / min(per_image.values()) / self._matmul_flops_per_s(),
            **{
                f"gain_{batch}": per_image[1] / per_image[batch] if batch in per_image else None
                for batch in self._setting.batches[1:]
            },
            "static_batch": static,
            "static_batch_images_per_s": static / statistics.median(together),
            "peak_mib": peak,
            **self._compiled(bare_s, loaded_s),
        }

    @contextmanager
    def _engine(self, compiled: CompiledUNet | None = None) -> Iterator[Engine[Any, Any]]:
        runner = DiffusionRunner.of(self._checkpoint, compiled=compiled)
        engine = Engine(runner, limits=Ceiling(2 * max(self._setting.batches)))
        engine.start()
        try:
            yield engine
        finally:
            engine.stop()

    @torch.inference_mode()  # as the engine has it: in another mode everything would be compiled anew
    def _compiled(self, bare_s: float, eager_s: float) -> dict[str, float | None]:
        """Measure the engine on a compiled UNet, for a lone image and for a full batch; None where it is not compiled in time."""
        figures: dict[str, float | None] = dict.fromkeys(COMPILED)
        batches = (1, min(self._setting.clients, max(self._setting.batches)))
        if not self._setting.compiled:
            return figures
        compiled = CompiledUNet(self._checkpoint.unet, rows=sorted({2 * batch for batch in batches}))
        inputs = [self._unet_inputs(batch) for batch in batches]
        for one in inputs:
            compiled.predict(*one)
        # What is left after that is for the measurements.
        compiled.settle(min(max(0.0, COMPILING_SHARE * self._left_s), 1e6))
        if compiled.is_busy or any(compiled.predict(*one) is None for one in inputs):
            return figures
        with self._engine(compiled) as engine:
            self._lone(engine)
            lone_s, loaded_s = self._timed(lambda: self._lone(engine)), self._timed(lambda: self._loaded(engine))
        full = [min(self._timed(lambda one=one: compiled.predict(*one)) for _ in range(3)) for one in inputs]  # type: ignore[misc]
        images_s = loaded_s / self._setting.images
        values = (lone_s, lone_s / bare_s, 1 / images_s, eager_s / images_s, 1000 * full[0], 1000 * full[-1])
        return dict(zip(COMPILED, values, strict=True))

    @property
    def _left_s(self) -> float:
        return self._until - time.perf_counter()

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
            if sum(taken[-1] for taken in times) > ROUNDS_SHARE * self._left_s:
                break
        return times

    def _lone(self, engine: Engine[Any, Any]) -> None:
        engine.submit(self._spec).result(None)

    def _bare_image(self, steps: int | None = None, images: int = 1) -> None:
        with divided(self._checkpoint.unet, self._checkpoint.vae):
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

    def _static_images(self) -> int:
        """Return the bare pipeline's fixed batch: as many images as there are clients, as far as memory and table go."""
        images = min(max(self._setting.batches), self._setting.clients)
        while images > 1 and not _fits(partial(self._bare_image, WARM_UP_STEPS, images)):
            images //= 2
        return images

    def _unet_call(self, images: int) -> Callable[[], object] | None:
        """Return a UNet call for so many guided images, two samples each: the engine's raw material. None if it does not fit."""
        unet = self._checkpoint.unet

        @torch.inference_mode()
        def call() -> None:
            unet(x, timesteps, encoder_hidden_states=context, return_dict=False)

        x, timesteps, context = self._unet_inputs(images)
        return call if _fits(call) else None

    def _unet_inputs(self, images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device, dtype, latent = self._checkpoint.device, self._checkpoint.dtype, self._setting.side // 8
        width = self._checkpoint.unet.config.cross_attention_dim
        x = torch.randn(2 * images, 4, latent, latent).to(device, dtype)
        context = torch.randn(2 * images, 77, width).to(device, dtype)
        return x, torch.full((2 * images,), 500.0, device=device), context

    def _unet_flops(self) -> int:
        """Return the arithmetic of a UNet call for one guided image."""
        return unet_flops(self._checkpoint.unet.config, self._setting.side // 8, samples=2)

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


def unet_flops(config: Any, latent: int, *, samples: int) -> int:
    """Return the arithmetic of a UNet call, as torch counts it: on the meta device, where nothing is computed or kept."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        unet: Any = UNet2DConditionModel.from_config(config)
        x, context = torch.empty(samples, 4, latent, latent), torch.empty(samples, 77, config["cross_attention_dim"])
        unet(x, torch.empty(samples), encoder_hidden_states=context, return_dict=False)
    return int(counter.get_total_flops())


@contextmanager
def divided(*modules: Any) -> Iterator[None]:
    """Have modules divide by one while the block lasts, as they do in a bare pipeline."""
    for module in modules:
        division.put_back(module)
    try:
        yield
    finally:
        for module in modules:
            division.leave_out(module)


def _fits(act: Callable[[], object]) -> bool:
    """Do something once, for the first time. False if memory does not suffice."""
    try:
        act()
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        return False
    return True


def _bare(checkpoint: LoadedCheckpoint) -> Any:
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
    # A static batch is not to be slowed down or refused for the memory of a batched decode.
    pipeline.vae.enable_slicing()
    return pipeline
