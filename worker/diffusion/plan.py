"""Sampling as a table of coefficients, computed before the first step.

A step of every sampler here is linear in the latents x, the UNet's predictions p so far and the fresh noise. So `_Trace` runs
diffusers' own scheduler object once on unit vectors instead of latents, and reads the step's coefficients off its result. In the
engine a step is then a few scaled additions: no scheduler object, no search, no wait for the device; LMS costs what Euler does.

Worked example: `make(HEUN, KARRAS, steps=2)` for SD1.5. The noise levels are 14.615, 0.029 and 0; Heun makes two calls in every
step but the last. Diffusers' scheduler, called with x0 = e0 and p0 = e3, returns e0 - 14.585 e3. For the next call it is given
x1 = e1, not its own result, and p1 = e4; it still remembers e0 and e3, and returns e0 - 7.293 e3 - 7.293 e4. The plan is

    call  step  timestep  UNet sees  x of the next call               terms, (source, lag, weight)
    0     0     999       0.068 x0   x0 - 14.585 p0                   (x, 0, 1) (prediction, 0, -14.585)
    1     0     0         1.000 x1   x0 - 7.293 p0 - 7.293 p1         (x, 1, 1) (prediction, 1, -7.293) (prediction, 0, -7.293)
    2     1     0         1.000 x2   x2 - 0.029 p2                    (x, 0, 1) (prediction, 0, -0.029)

Call 0 is an Euler step of 0.029 - 14.615; call 1 replaces it by a step from x0 along the mean of both predictions. DPM++ 2M makes
one call a step and looks back: its second row with three steps is 2.843 x1 - 11.074 x0 - 2.208 p1 + 11.049 p0.

Each call's x is a new unit vector, whatever the call before returned, because inpainting alters latents between steps.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shared.vocabulary.samplers import TWO_CALLS_A_STEP, Sampler, Schedule, unet_calls
from worker.diffusion import samplers
from worker.diffusion.transfer import to_device

Source = Literal["x", "prediction", "memory"]
SOURCES: tuple[Source, ...] = ("x", "prediction", "memory")
CACHED_PLANS = 256
LMS_ORDER = 4
NEGLIGIBLE = 1e-12  # of a coefficient: what cancels leaves rounding behind


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a step: `weight` times an x, prediction or memory, `lag` calls back; 0 is the present call's."""

    source: Source
    lag: int
    weight: float


@dataclass(frozen=True, slots=True)
class Call:
    """One UNet call and the step that follows it: a row of the table.

    `sigma` is the ratio of noise to signal in the UNet's input; `step`, from 0, is the sampler step that the call belongs to.
    The next x is the sum of `terms` and of `fresh`, (draw, weight) of unit noise. `renoise` are the weights of clean latents and
    noise at the level of the next x. `memory` is a second sum, kept for later calls, by a sampler that corrects its last result.
    """

    timestep: float
    input_scale: float
    sigma: float
    step: int
    terms: tuple[Term, ...]
    memory: tuple[Term, ...]
    fresh: tuple[tuple[int, float], ...]
    renoise: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """All calls of a walk, and `start`, the weights of clean latents and noise in its first x.

    `draws` counts the draws of fresh noise. With `brownian`, these are the increments of one Brownian path over pairs of sigmas,
    all within `sigma_range`.
    """

    calls: tuple[Call, ...]
    start: tuple[float, float]
    draws: int
    brownian: tuple[tuple[float, float], ...]
    sigma_range: tuple[float, float]
    predicts_velocity: bool

    @property
    def reach(self) -> int:
        """Largest lag: how many calls back the steps look."""
        return max((term.lag for call in self.calls for term in (*call.terms, *call.memory)), default=0)


def make(
    sampler: Sampler, schedule: Schedule, steps: int, config: Mapping[str, Any], *, last: int | None = None
) -> Plan:
    """Plan a walk of `steps`, or of only the `last` ones of them from a picture with noise over it (image-to-image).

    `config` is a checkpoint's scheduler config: its betas and prediction type. Plans are cached.
    """
    return _make(sampler, schedule, steps, json.dumps(dict(config), sort_keys=True, default=str), last)


class Walk:
    """Executes a plan on one image. `x` is (1, 4, height/8, width/8) float32, and may be replaced between steps.

    `fresh[call]` is the sum of the call's fresh noise, (1, 4, height/8, width/8), perhaps in pinned host memory.
    """

    def __init__(self, plan: Plan, x: Tensor, fresh: Any = None) -> None:
        self._plan = plan
        self._fresh = fresh
        self.x = x
        self.calls_done = 0
        length = max(1, plan.reach)  # a preview and a snapshot show the last call's
        self._history: dict[Source, deque[Tensor]] = {source: deque(maxlen=length) for source in SOURCES}

    @property
    def is_over(self) -> bool:
        """Whether all calls are made."""
        return self.calls_done == len(self._plan.calls)

    @property
    def call(self) -> Call:
        """The next call to make; the last one when the walk is over."""
        return self._plan.calls[min(self.calls_done, len(self._plan.calls) - 1)]

    def model_input(self) -> Tensor:
        """Return the latents scaled for the UNet."""
        return self.x * self.call.input_scale

    def advance(self, prediction: Tensor, keep: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Take the step of the present call by its prediction; `keep` may replace the resulting latents (inpainting)."""
        call = self.call
        present: dict[Source, Tensor] = {"x": self.x, "prediction": prediction}
        stepped = self._sum(call.terms, present)
        if call.memory:
            present["memory"] = self._sum(call.memory, present)
        if call.fresh and self._fresh is not None:
            stepped.add_(to_device(self._fresh[self.calls_done], stepped.device))
        stepped = keep(stepped)
        # Only now, when nothing can fail any more: a call that ran out of memory is made again.
        for source, latents in present.items():
            self._history[source].appendleft(latents)
        self.x = stepped
        self.calls_done += 1

    def denoised(self) -> Tensor:
        """Return the clean latents that the last prediction implies; the present latents before the first call."""
        if not self.calls_done:
            return self.x
        call = self._plan.calls[self.calls_done - 1]
        noisy, prediction = self._history["x"][0] * call.input_scale, self._history["prediction"][0]
        signal = 1 / math.sqrt(1 + call.sigma**2)
        if self._plan.predicts_velocity:
            return noisy * signal - prediction * (call.sigma * signal)
        return noisy / signal - prediction * call.sigma

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that the calls to come depend on, by name. None of them is ever written to again."""
        if self.is_over:
            return {"x": self.x}
        past = {
            f"{source}.{lag}": latents
            for source, history in self._history.items()
            for lag, latents in enumerate(history)
        }
        return {"x": self.x, **past}

    def resume(self, calls_done: int, state: Mapping[str, Tensor]) -> None:
        """Continue from the `state` of a walk along the same plan."""
        self.calls_done = calls_done
        self.x = state["x"]
        for source, history in self._history.items():
            lags = range(sum(name.startswith(f"{source}.") for name in state))
            history.extend(state[f"{source}.{lag}"] for lag in lags)

    def _sum(self, terms: Sequence[Term], present: Mapping[Source, Tensor]) -> Tensor:
        first, *rest = terms
        total = self._at(first, present) * first.weight
        for term in rest:
            total.add_(self._at(term, present), alpha=term.weight)
        return total

    def _at(self, term: Term, present: Mapping[Source, Tensor]) -> Tensor:
        return self._history[term.source][term.lag - 1] if term.lag else present[term.source]


@lru_cache(CACHED_PLANS)
def _make(sampler: Sampler, schedule: Schedule, steps: int, config: str, last: int | None) -> Plan:
    settings = json.loads(config)
    scheduler = samplers.make(sampler, schedule, steps, settings)
    skipped = 0 if last is None else steps - last
    timesteps = _timesteps(scheduler, sampler, skipped)
    if len(timesteps) != unet_calls(sampler, steps, last=last):
        raise ArithmeticError(
            f"{sampler} on {schedule} has {len(timesteps)} calls for {last or steps} of {steps} steps"
        )
    trace = _Trace(scheduler, sampler, len(timesteps))
    calls = [trace.call(timestep, skipped + _step(sampler, index)) for index, timestep in enumerate(timesteps)]
    levels = [*trace.levels[1:], (1.0, 0.0)]
    return Plan(
        calls=tuple(replace(call, renoise=level) for call, level in zip(calls, levels, strict=True)),
        start=(0.0, float(scheduler.init_noise_sigma)) if last is None else trace.levels[0],
        draws=trace.draws,
        brownian=tuple(trace.brownian),
        sigma_range=trace.sigma_range,
        predicts_velocity=settings.get("prediction_type") == "v_prediction",
    )


def _timesteps(scheduler: Any, sampler: Sampler, skipped: int) -> Tensor:
    """Return the timesteps after the first `skipped` steps, and let the scheduler object begin there."""
    if sampler is Sampler.PLMS:
        # It evaluates its second timestep twice. Diffusers' img2img drops the repetition and the scheduler loses count.
        left = scheduler.timesteps.unique().flip(0)[skipped:]
        return torch.cat([left[:2], left[1:]])
    begin = skipped * (2 if sampler in TWO_CALLS_A_STEP else 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler.timesteps[begin:]


def _step(sampler: Sampler, index: int) -> int:
    """Return the step that a call belongs to: two calls make one with some samplers, PLMS makes its first twice."""
    if sampler in TWO_CALLS_A_STEP:
        return index // 2
    if sampler is Sampler.PLMS:
        return max(0, index - 1)
    return index


class _Basis:
    """Unit vectors for all inputs of a walk: every call's x, prediction and memory, then its draws of noise, two at most.

    A vector is (1, 5 * calls, 1, 1) float64, of latents' four dimensions. With three calls e0 … e2 are the x, e3 … e5 the
    predictions, e6 … e8 the memories and e9 … e14 the draws.
    """

    def __init__(self, calls: int) -> None:
        self._calls = calls

    def unit(self, source: Source, call: int) -> Tensor:
        return self._vector(SOURCES.index(source) * self._calls + call)

    def draw(self, index: int) -> Tensor:
        return self._vector(len(SOURCES) * self._calls + index)

    def terms(self, vector: Tensor, call: int) -> tuple[Term, ...]:
        """Return the coefficients of x, predictions and memories in a vector, with lags as seen from a call."""
        weights = vector.flatten()[: len(SOURCES) * self._calls].split(self._calls)
        return tuple(
            Term(source, call - index, weight)
            for source, of_source in zip(SOURCES, weights, strict=True)
            for index, weight in enumerate(of_source.tolist())
            if abs(weight) > NEGLIGIBLE
        )

    def draws(self, vector: Tensor, begin: int, end: int) -> tuple[tuple[int, float], ...]:
        """Return (draw, coefficient) of the draws `begin` … `end` - 1 that a vector contains."""
        weights = vector.flatten()[len(SOURCES) * self._calls :].tolist()
        return tuple((draw, weights[draw]) for draw in range(begin, end) if weights[draw])

    def _vector(self, position: int) -> Tensor:
        vector = torch.zeros(1, 5 * self._calls, 1, 1, dtype=torch.float64)
        vector[0, position] = 1
        return vector


class _Trace(TorchFunctionMode):
    """Runs a scheduler object on unit vectors, call by call; as a mode of torch it answers draws of noise with unit vectors, too.

    `levels` are the weights of clean latents and noise in the x of every call so far.
    """

    def __init__(self, scheduler: Any, sampler: Sampler, calls: int) -> None:
        super().__init__()
        self._scheduler = scheduler
        self._is_lms = sampler is Sampler.LMS
        self._basis = _Basis(calls)
        self._done = 0
        self.levels: list[tuple[float, float]] = []
        self.draws = 0
        self.brownian: list[tuple[float, float]] = []
        self.sigma_range = (0.0, 0.0)
        if sampler is Sampler.DPMPP_SDE:
            scheduler.noise_sampler = self._increment
            sigmas = scheduler.sigmas[scheduler.sigmas > 0]
            self.sigma_range = (float(sigmas.min()), float(sigmas.max()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer `torch.randn` with the next draw; let every other function of torch pass."""
        del types
        if func is torch.randn:
            return self._draw()
        return func(*args, **(kwargs or {}))

    def call(self, timestep: Tensor, step: int) -> Call:
        """Trace one call and its step. `renoise` stays open: only the next call knows the level that this one reaches."""
        scale = float(self._scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep))
        self.levels.append(_level(self._scheduler, timestep, scale))
        clean, noise = self.levels[-1]
        first_draw = self.draws
        stepped = self._step(timestep)
        memory = self._memorized()
        traced = Call(
            timestep=float(timestep),
            input_scale=scale,
            sigma=noise / clean,
            step=step,
            terms=self._terms(stepped),
            memory=self._terms(memory) if memory is not None else (),
            fresh=self._basis.draws(stepped, first_draw, self.draws),
            renoise=(1.0, 0.0),
        )
        self._done += 1
        return traced

    def _step(self, timestep: Tensor) -> Tensor:
        """Have the scheduler step from this call's x by its prediction, both unit vectors; return the next x."""
        x, prediction = self._basis.unit("x", self._done), self._basis.unit("prediction", self._done)
        # In the middle of a schedule the library's LMS takes weights for a history that it does not have.
        options = {"order": min(LMS_ORDER, self._done + 1)} if self._is_lms else {}
        with self:
            stepped: Tensor = self._scheduler.step(prediction, timestep, x, return_dict=False, **options)[0]
        return stepped

    def _memorized(self) -> Tensor | None:
        """Take the x that the scheduler remembers of its own making, and put a unit vector in its place.

        Only UniPC has one: its corrected x depends on the one before, and so on back to the first.
        """
        memory: Tensor | None = getattr(self._scheduler, "last_sample", None)
        if memory is not None:
            self._scheduler.last_sample = self._basis.unit("memory", self._done)
        return memory

    def _draw(self) -> Tensor:
        self.draws += 1
        return self._basis.draw(self.draws - 1)

    def _increment(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        low, high = self.sigma_range  # which rounding may overstep
        self.brownian.append((min(max(float(sigma), low), high), min(max(float(sigma_next), low), high)))
        return self._draw()

    def _terms(self, vector: Tensor) -> tuple[Term, ...]:
        if not vector.isfinite().all():
            raise ArithmeticError(f"{type(self._scheduler).__name__} has no finite step {self._done + 1}")
        return self._basis.terms(vector, self._done)


def _level(scheduler: Any, timestep: Tensor, scale: float) -> tuple[float, float]:
    """Return the weights of clean latents and noise in the x of the present call."""
    if scale != 1 and not getattr(scheduler, "state_in_first_order", True):
        # Halfway between two levels, which the library's add_noise does not know of.
        return 1.0, math.sqrt(1 / scale**2 - 1)
    clean, noise = torch.eye(2, dtype=torch.float64).split(1)
    clean_weight, noise_weight = scheduler.add_noise(clean, noise, timestep.reshape(1)).flatten().tolist()
    return clean_weight, noise_weight
