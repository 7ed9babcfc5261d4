"""Throughput of the engine while it has work. Immutable values: the engine's thread replaces them, any thread may read."""

from dataclasses import dataclass

# Ticks that the averages look back over, roughly: a minute of a GPU's, so that a change of load shows within one.
MEMORY_TICKS = 200


@dataclass(frozen=True, slots=True)
class Pace:
    """Running totals since the start and averages over the last ticks; the averages are 0 before the first tick.

    `cost` counts latent pixels through the UNet, as `GenerationParams.cost` does.
    """

    ticks: int = 0
    busy_s: float = 0.0
    cost: float = 0.0
    image_steps: int = 0
    tick_s: float = 0.0
    speed: float = 0.0
    batch_fill: float = 0.0

    def after(self, tick_s: float, *, cost: float, images: int) -> "Pace":
        """Return the pace with one more tick of `tick_s` seconds that advanced `images` images by a step."""
        # The first ticks weigh more, so that a young worker's averages are those of what it has done.
        share = max(1 / (self.ticks + 1), 1 / MEMORY_TICKS)
        mean_s = self.tick_s + share * (tick_s - self.tick_s)
        mean_cost = self.speed * self.tick_s
        mean_cost += share * (cost - mean_cost)
        return Pace(
            ticks=self.ticks + 1,
            busy_s=self.busy_s + tick_s,
            cost=self.cost + cost,
            image_steps=self.image_steps + images,
            tick_s=mean_s,
            speed=mean_cost / mean_s if mean_s else 0.0,
            batch_fill=self.batch_fill + share * (images - self.batch_fill),
        )
