"""Schedule of the denoiser's training: picture sizes, minutes and loss of each stage. Does not train.

A plan is a sequence of phases; in a phase, every step draws one of its sizes by weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deploy.standalone.training.latents import PICTURES


@dataclass(frozen=True, slots=True)
class Share:
    """One picture size in a phase: how many pictures a step takes, and how often steps take this size."""

    side_px: int
    batch: int
    weight: float


@dataclass(frozen=True, slots=True)
class Phase:
    """Some minutes with one mix of sizes."""

    minutes: float
    mix: tuple[Share, ...]


Plan = tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One training run. `guidance` is the scale at which the guided prediction is made right; 1 is the usual loss."""

    name: str
    plan: Plan
    heads: int
    guidance: float
    rate: float
    starts_from: str | None = None

    @property
    def minutes(self) -> float:
        """Minutes of training, without those of drawing pictures."""
        return sum(phase.minutes for phase in self.plan)


def parse_plan(text: str) -> Plan:
    """Read a plan like `4@128:24:1/11@256:8:.75,128:24:.25`.

    That is 4 minutes at 128 px in batches of 24, then 11 minutes with three quarters of the steps at 256 px in batches of 8.
    """
    phases = []
    for phase in text.split("/"):
        minutes, mix = phase.split("@")
        phases.append(Phase(float(minutes), tuple(_share(share) for share in mix.split(","))))
    return tuple(phases)


def _share(text: str) -> Share:
    side_px, batch, weight = text.split(":")
    if int(side_px) not in PICTURES:
        raise ValueError(f"no pictures of {side_px} px; possible: {', '.join(map(str, PICTURES))}")
    return Share(int(side_px), int(batch), float(weight))


STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        # From nothing, with four attention heads and the ordinary loss.
        "first": Stage(
            "first",
            parse_plan("20@64:48:1/9@128:24:.85,64:48:.15/8@256:8:.7,128:24:.3/6@512:3:.6,256:8:.4"),
            heads=4,
            guidance=1.0,
            rate=2e-3,
        ),
        # The same weights read as one head, twice as fast at 512 px, with the loss on the guided prediction.
        "second": Stage(
            "second",
            parse_plan("4@128:24:1/11@256:8:.75,128:24:.25/19@512:4:.65,256:8:.25,128:24:.1"),
            heads=1,
            guidance=3.0,
            rate=1.5e-3,
            starts_from="first",
        ),
    }
)
