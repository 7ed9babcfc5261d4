"""Joint training of text encoder and UNet on latents that were encoded ahead.

The published weights are the running average; a stage that starts from another continues weights and average.
"""

import copy
import logging
import math
import random
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.standalone.training import latents, reading
from deploy.standalone.training.captions import caption, tells_a_scene
from deploy.standalone.training.latents import LatentSet
from deploy.standalone.training.networks import Denoiser, SampledAttention
from deploy.standalone.training.noising import Noised, Noiser
from deploy.standalone.training.shapes import dice
from deploy.standalone.training.stages import Share, Stage
from deploy.standalone.training.vocabulary import Vocabulary
from deploy.standalone.training.workspace import Workspace, read, until_spent, write

WARM_UP_STEPS = 50
TEXT_RATE = 0.2  # of the UNet's: it can already read
AVERAGE_OVER_STEPS = 333
REPORT_EVERY, SAVE_EVERY = 50, 250

log = logging.getLogger(__name__)


class DenoiserTrainer:
    """One stage, a step at a time. `average` is the running average of `live`."""

    def __init__(self, stage: Stage, vocabulary: Vocabulary, space: Workspace) -> None:
        self.vocabulary, self.steps = vocabulary, 0
        self.live = Denoiser(vocabulary, heads=stage.heads).to(space.device)
        self.live.unet.to(memory_format=torch.channels_last).set_attn_processor(SampledAttention())
        self.average = copy.deepcopy(self.live)
        self._stage, self._space = stage, space
        self._noiser, self._rng = Noiser(), dice(8 if stage.starts_from else 7)
        self._optimizer = torch.optim.AdamW(self._weight_groups(), lr=stage.rate, betas=(0.9, 0.99))
        self._nothing = vocabulary.encode([""]).to(space.device)

    @property
    def rng(self) -> random.Random:
        """Source of randomness for sizes, pictures and captions."""
        return self._rng

    def step(self, pictures: LatentSet, batch: int, spent: float) -> float:
        """Take one training step on a sample of the pictures; return its weighted loss. `spent`: used share of the time."""
        self._set_rate(spent)
        picked = [self._rng.randrange(len(pictures.scenes)) for _ in range(batch)]
        captions = [caption(pictures.scenes[i], self._rng) for i in picked]
        noised = self._noiser.noised(pictures.latents[picked].float(), pictures.side_px, self._rng)
        loss = self.loss(noised, captions)
        self._learn(loss)
        return float(loss.detach())

    def loss(self, noised: Noised, captions: list[str]) -> Tensor:
        """Return the error of the noise prediction over all pictures, at the stage's guidance scale."""
        prompted = torch.tensor([tells_a_scene(text) for text in captions])
        scale = torch.where(prompted, self._stage.guidance, 1.0)
        predicted = self._guided(noised, captions, prompted, scale)
        wrong = (predicted - noised.noise.to(predicted.device)).square().mean((1, 2, 3))
        return (wrong * (noised.weight / scale.sqrt()).to(wrong.device)).mean()

    def restore(self, path: Path) -> None:
        """Continue from the weights of another stage."""
        tensors, facts = read(path)
        if tuple(facts["tokens"]) != self.vocabulary.tokens:
            raise ValueError(f"{path}: trained with another vocabulary")
        self.live.load_state_dict(_under("live.", tensors))
        self.average.load_state_dict(_under("average.", tensors))

    def save(self) -> None:
        """Save the weights to the workspace."""
        both = {"live": self.live.state_dict(), "average": self.average.state_dict()}
        tensors = {f"{kind}.{name}": tensor for kind, state in both.items() for name, tensor in state.items()}
        facts = {"tokens": self.vocabulary.tokens, "heads": self._stage.heads, "steps": self.steps}
        write(self._space.denoiser_file(self._stage.name), tensors, facts)

    def _guided(self, noised: Noised, captions: list[str], prompted: Tensor, scale: Tensor) -> Tensor:
        """Predict as sampling does: empty + scale x (prompted - empty), learning only through the prompted part.

        With the plain loss, the usual scale of 7 overshoots: gray comes out purple, pink amber.
        """
        device = self._space.device
        noisy = noised.latents.to(device, memory_format=torch.channels_last)
        levels, prompted, scale = noised.levels.to(device), prompted.to(device), scale.to(device).view(-1, 1, 1, 1)
        with self._space.autocast():
            predicted: Tensor = self.live(noisy, levels, self.vocabulary.encode(captions).to(device))
            if self._stage.guidance == 1 or not prompted.any():
                return predicted
            empty = torch.zeros_like(predicted)
            with torch.no_grad():
                empty[prompted] = self.live(noisy[prompted], levels[prompted], self._nothing)
        return empty * (1 - scale) + predicted * scale

    def _learn(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.live.parameters(), 1.0)
        self._optimizer.step()
        self.steps += 1
        self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        young = 0.0 if self._stage.starts_from else 20 / (self.steps + 20)
        for average, weight in zip(self.average.parameters(), self.live.parameters(), strict=True):
            average.lerp_(weight, max(1 / AVERAGE_OVER_STEPS, young))

    def _set_rate(self, spent: float) -> None:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, spent)))
        rate = self._stage.rate * min(1.0, (self.steps + 1) / WARM_UP_STEPS) * max(0.02, cosine)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["share"]

    def _weight_groups(self) -> list[dict[str, object]]:
        weights = list(self.live.unet.parameters())
        return [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.01, "share": 1.0},
            {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0, "share": 1.0},
            {"params": list(self.live.text_encoder.parameters()), "weight_decay": 0.0, "share": TEXT_RATE},
        ]


def train(space: Workspace, stage: Stage) -> None:
    """Run one stage and leave its weights in the workspace."""
    torch.manual_seed(0)
    trainer = DenoiserTrainer(stage, Vocabulary.of_clip(), space)
    if stage.starts_from:
        trainer.restore(space.denoiser_file(stage.starts_from))
    else:
        reading.teach(trainer.live.text_encoder, trainer.vocabulary, space)
        trainer.average.load_state_dict(trainer.live.state_dict())
    losses: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=60))
    for pictures, share, spent in _lessons(space, stage, trainer.rng):
        losses[share.side_px].append(trainer.step(pictures, share.batch, spent))
        if trainer.steps % REPORT_EVERY == 0:
            log.info("denoiser: step %d, %.0f%%, loss %s", trainer.steps, 100 * spent, _summary(losses))
        if trainer.steps % SAVE_EVERY == 0:
            trainer.save()
    trainer.save()
    log.info("denoiser: stage %s done after %d steps, loss %s", stage.name, trainer.steps, _summary(losses))


def _lessons(space: Workspace, stage: Stage, rng: random.Random) -> Iterator[tuple[LatentSet, Share, float]]:
    """Yield each step's pictures, phase by phase, and the used share of the stage."""
    drawn: dict[int, LatentSet] = {}
    spent_minutes = 0.0
    for phase in stage.plan:
        for share in phase.mix:
            if share.side_px not in drawn:
                drawn[share.side_px] = latents.of_size(space, share.side_px)
        for spent in until_spent(60 * phase.minutes * space.effort):
            share = rng.choices(phase.mix, [share.weight for share in phase.mix])[0]
            yield drawn[share.side_px], share, (spent_minutes + spent * phase.minutes) / stage.minutes
        spent_minutes += phase.minutes


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _summary(losses: dict[int, deque[float]]) -> str:
    return ", ".join(f"{side_px} px {sum(some) / len(some):.4f}" for side_px, some in sorted(losses.items()))
