"""Sampling as a table of numbers, made before the first step.

The step of every sampler here is linear in the latents, the predictions so far and the fresh noise. So diffusers' own scheduler
object is run once on unit vectors instead of latents, and what comes out are the step's coefficients. In the engine a step is
then a handful of scaled additions: no scheduler object, no search, nothing waits for the device, and LMS costs what Euler does.

Each call's input is a new unit vector, whatever the call before gave, because inpainting alters latents between steps.
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

from shared.vocabulary.samplers import TWO_CALLS_A_STEP, Sampler, Schedule
from worker.diffusion import samplers
from worker.diffusion.transfer import to_device

Source = Literal["x", "prediction", "memory"]
CACHED_PLANS = 256
LMS_ORDER = 4
NEGLIGIBLE = 1e-12  # of a coefficient: what cancels leaves rounding behind


@dataclass(frozen=True, slots=True)
class Term:
    """A weighted part of a step. `lag` counts calls back, 0 is the present one; a memory's lag 1 is what the call before left."""

    source: Source
    lag: int
    weight: float


@dataclass(frozen=True, slots=True)
class Call:
    """One UNet call and the step that follows it.

    `sigma` is the ratio of noise to signal in what the UNet sees; `step` is which of the steps asked for the call belongs to,
    from 0; `fresh` are (draw, weight); `renoise` are the weights of clean latents and noise at the level that the step reaches.
    `memory` is what the step keeps for later beside its inputs, for samplers that correct their last result.
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
    """All calls of a walk, and the weights of clean latents and noise that it starts from.

    `draws` counts the fresh noise. With `brownian`, these are the increments of one Brownian path over pairs of sigmas.
    """

    calls: tuple[Call, ...]
    start: tuple[float, float]
    draws: int
    brownian: tuple[tuple[float, float], ...]
    sigma_range: tuple[float, float]
    predicts_velocity: bool

    @property
    def reach(self) -> int:
        """How many calls back the steps look."""
        return max((term.lag for call in self.calls for term in (*call.terms, *call.memory)), default=0)


def make(
    sampler: Sampler, schedule: Schedule, steps: int, config: Mapping[str, Any], *, last: int | None = None
) -> Plan:
    """Plan a walk of `steps`, or of the `last` ones of them from a picture with noise over it.

    `config` is a checkpoint's scheduler config: its betas and prediction type. Plans are remembered.
    """
    return _make(sampler, schedule, steps, json.dumps(dict(config), sort_keys=True, default=str), last)


class Walk:
    """One image's way along a plan. `x` is (1, 4, height/8, width/8) float32, and may be replaced between steps.

    `fresh` gives each call's share of fresh noise by its index, (1, 4, height/8, width/8), perhaps from pinned host memory.
    """

    def __init__(self, plan: Plan, x: Tensor, fresh: Any = None) -> None:
        self._plan = plan
        self._fresh = fresh
        self.x = x
        self.calls_done = 0
        kept = max(1, plan.reach)  # a preview and a snapshot show the last call's
        self._history: dict[Source, deque[Tensor]] = {
            "x": deque(maxlen=kept),
            "prediction": deque(maxlen=kept),
            "memory": deque(maxlen=kept),
        }

    @property
    def is_over(self) -> bool:
        """Whether every call has been made."""
        return self.calls_done == len(self._plan.calls)

    @property
    def call(self) -> Call:
        """The call to make now; the last one when all have been made."""
        return self._plan.calls[min(self.calls_done, len(self._plan.calls) - 1)]

    def model_input(self) -> Tensor:
        """Return the latents as the UNet is to see them."""
        return self.x * self.call.input_scale

    def advance(self, prediction: Tensor, keep: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Take the step that a prediction for the present call leads to; `keep` says what becomes of its latents."""
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
        """Return the clean latents that the last prediction pointed to; the present ones before the first call."""
        if not self.calls_done:
            return self.x
        call = self._plan.calls[self.calls_done - 1]
        noisy, prediction = self._history["x"][0] * call.input_scale, self._history["prediction"][0]
        signal = 1 / math.sqrt(1 + call.sigma**2)
        if self._plan.predicts_velocity:
            return noisy * signal - prediction * (call.sigma * signal)
        return noisy / signal - prediction * call.sigma

    def state(self) -> dict[str, Tensor]:
        """Return all that the calls to come depend on. No tensor of it is ever written to again."""
        if self.is_over:
            return {"x": self.x}
        past = {
            f"{source}.{lag}": latents
            for source, history in self._history.items()
            for lag, latents in enumerate(history)
        }
        return {"x": self.x, **past}

    def resume(self, calls_done: int, state: Mapping[str, Tensor]) -> None:
        """Stand where a walk along the same plan stood when it told its `state`."""
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
    made = samplers.make(sampler, schedule, steps, settings)
    skipped = 0 if last is None else steps - last
    timesteps = _timesteps(made, sampler, skipped)
    trace = _Trace(made, sampler, len(timesteps))
    calls = [trace.call(timestep, skipped + _step(sampler, index)) for index, timestep in enumerate(timesteps)]
    levels = [*trace.levels[1:], (1.0, 0.0)]
    return Plan(
        calls=tuple(replace(call, renoise=level) for call, level in zip(calls, levels, strict=True)),
        start=(0.0, float(made.init_noise_sigma)) if last is None else trace.levels[0],
        draws=trace.draws,
        brownian=tuple(trace.brownian),
        sigma_range=trace.sigma_range,
        predicts_velocity=settings.get("prediction_type") == "v_prediction",
    )


def _timesteps(made: Any, sampler: Sampler, skipped: int) -> Tensor:
    """Return the timesteps after the first `skipped` steps, and let the scheduler object begin there."""
    if sampler is Sampler.PLMS:
        # It evaluates its second timestep twice. Diffusers' img2img drops the repetition and the scheduler loses count.
        left = made.timesteps.unique().flip(0)[skipped:]
        return torch.cat([left[:2], left[1:]])
    begin = skipped * (2 if sampler in TWO_CALLS_A_STEP else 1)
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(begin)
    return made.timesteps[begin:]


def _step(sampler: Sampler, index: int) -> int:
    """Return the step that a call belongs to: two calls make one with some samplers, PLMS makes its first twice."""
    if sampler in TWO_CALLS_A_STEP:
        return index // 2
    if sampler is Sampler.PLMS:
        return max(0, index - 1)
    return index


class _Trace(TorchFunctionMode):
    """Runs a scheduler object on unit vectors. While it does, every draw of noise is answered with the next unit vector.

    The vectors are (1, units, 1, 1) float64: the x of every call, then the predictions, the memories and the draws, of which a
    call makes two at most. `levels` are the weights of clean latents and noise in the x of every call.
    """

    def __init__(self, made: Any, sampler: Sampler, calls: int) -> None:
        super().__init__()
        self._made = made
        self._is_lms = sampler is Sampler.LMS
        self._calls = calls
        self._done = 0
        self.levels: list[tuple[float, float]] = []
        self.draws = 0
        self.brownian: list[tuple[float, float]] = []
        self.sigma_range = (0.0, 0.0)
        if sampler is Sampler.DPMPP_SDE:
            made.noise_sampler = self._increment
            sigmas = made.sigmas[made.sigmas > 0]
            self.sigma_range = (float(sigmas.min()), float(sigmas.max()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a draw; let everything else pass."""
        del types
        if func is torch.randn:
            return self._draw()
        return func(*args, **(kwargs or {}))

    def call(self, timestep: Tensor, step: int) -> Call:
        """Trace one call and its step; how the level that it reaches is noised, only the next call can tell."""
        made, index, first_draw = self._made, self._done, self.draws
        scale = float(made.scale_model_input(torch.ones(1, dtype=torch.float64), timestep))
        self.levels.append(_level(made, timestep, scale))
        # In the middle of a schedule the library's LMS takes weights for a history that it does not have.
        options = {"order": min(LMS_ORDER, index + 1)} if self._is_lms else {}
        with self:
            stepped = made.step(self._unit(1, index), timestep, self._unit(0, index), return_dict=False, **options)[0]
        memory = self._memorized()
        self._done += 1
        clean, noise = self.levels[-1]
        return Call(
            timestep=float(timestep),
            input_scale=scale,
            sigma=noise / clean,
            step=step,
            terms=self._terms(stepped),
            memory=self._terms(memory) if memory is not None else (),
            fresh=self._fresh(stepped, first_draw),
            renoise=(1.0, 0.0),
        )

    def _memorized(self) -> Tensor | None:
        """Read what the scheduler keeps of its own making, and let it go on with a unit vector in its place.

        Only UniPC does: its corrected x depends on the one before, and so on back to the first.
        """
        kept: Tensor | None = getattr(self._made, "last_sample", None)
        if kept is not None:
            self._made.last_sample = self._unit(2, self._done)
        return kept

    def _unit(self, kind: int, index: int) -> Tensor:
        vector = torch.zeros(1, 5 * self._calls, 1, 1, dtype=torch.float64)
        vector[0, kind * self._calls + index] = 1
        return vector

    def _draw(self) -> Tensor:
        self.draws += 1
        return self._unit(3, self.draws - 1)

    def _increment(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        low, high = self.sigma_range  # which rounding may overstep
        self.brownian.append((min(max(float(sigma), low), high), min(max(float(sigma_next), low), high)))
        return self._draw()

    def _terms(self, vector: Tensor) -> tuple[Term, ...]:
        if not vector.isfinite().all():
            raise ArithmeticError(f"{type(self._made).__name__} has no finite step {self._done}")
        by_kind = vector.flatten().split(self._calls)
        sources: tuple[Source, ...] = ("x", "prediction", "memory")
        return tuple(
            Term(source, self._done - 1 - index, weight)
            for source, weights in zip(sources, by_kind, strict=False)
            for index, weight in enumerate(weights.tolist())
            if abs(weight) > NEGLIGIBLE
        )

    def _fresh(self, vector: Tensor, first_draw: int) -> tuple[tuple[int, float], ...]:
        weights = vector.flatten()[3 * self._calls :].tolist()
        return tuple((draw, weights[draw]) for draw in range(first_draw, self.draws) if weights[draw])


def _level(made: Any, timestep: Tensor, scale: float) -> tuple[float, float]:
    """Return how clean latents and noise are mixed in the x of the present call."""
    if scale != 1 and not getattr(made, "state_in_first_order", True):
        # Halfway between two levels, which the library's add_noise does not know of.
        return 1.0, math.sqrt(1 / scale**2 - 1)
    clean, noise = torch.eye(2, dtype=torch.float64).split(1)
    clean_weight, noise_weight = made.add_noise(clean, noise, timestep.reshape(1)).flatten().tolist()
    return clean_weight, noise_weight
