"""Pretraining of the text encoder, before the UNet exists: supervised classification of the captions' answers.

Without it, and with the plain loss, hundreds of steps gave pictures that ignored the prompt.
"""

import logging
import random
from typing import Any

import torch
from torch import Tensor, nn

from deploy.standalone.training.captions import ANSWERS, answers, caption
from deploy.standalone.training.networks import WIDTH
from deploy.standalone.training.shapes import dice, random_scene
from deploy.standalone.training.vocabulary import POSITIONS, Vocabulary
from deploy.standalone.training.workspace import Workspace, until_spent

MINUTES = 1.5
BATCH = 128
RATE, WARM_UP_STEPS = 3e-3, 60
SHORT = 36  # positions; most captions end well before, and three steps in four read no further
REPORT_EVERY = 50

log = logging.getLogger(__name__)


class ReadingTrainer:
    """Trains a text encoder with one small classifier per question."""

    def __init__(self, text_encoder: Any, vocabulary: Vocabulary, space: Workspace) -> None:
        self._encoder, self._vocabulary, self._space = text_encoder, vocabulary, space
        self._questions = nn.ModuleList(nn.Linear(WIDTH, answers) for answers in ANSWERS).to(space.device)
        self._weights = [*text_encoder.parameters(), *self._questions.parameters()]
        self._optimizer = torch.optim.AdamW(self._weights, lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
        self.steps = 0

    def step(self, rng: random.Random, spent: float) -> tuple[float, float]:
        """Take one training step; return the loss and the share of right answers. `spent` is the used share of the time."""
        rate = RATE * min(1.0, (self.steps + 1) / WARM_UP_STEPS) * max(0.05, 1 - spent)
        self._optimizer.param_groups[0]["lr"] = rate
        rows, labels = self._lesson(rng, POSITIONS if self.steps % 4 == 0 else SHORT)
        guesses = self._guesses(rows)
        loss = torch.stack([nn.functional.cross_entropy(g, a) for g, a in zip(guesses, labels, strict=True)]).sum()
        self._learn(loss)
        right = [(g.argmax(1) == a).float().mean() for g, a in zip(guesses, labels, strict=True)]
        return float(loss.detach()), float(torch.stack(right).mean())

    def _lesson(self, rng: random.Random, length: int) -> tuple[Tensor, list[Tensor]]:
        """Return captions, and per question the answer at every position from the end token on."""
        scenes = [random_scene(rng) for _ in range(BATCH)]
        texts = [caption(scene, rng) for scene in scenes]
        rows = self._vocabulary.encode(texts)[:, :length]
        labels = torch.tensor([answers(scene, text) for scene, text in zip(scenes, texts, strict=True)])
        each = labels.unsqueeze(1).expand(-1, rows.shape[1], -1)[rows == self._vocabulary.end]
        return rows.to(self._space.device), list(each.to(self._space.device).unbind(1))

    def _guesses(self, rows: Tensor) -> list[Tensor]:
        with self._space.autocast():
            hidden = self._encoder(input_ids=rows).last_hidden_state
        after_end = hidden.float()[rows == self._vocabulary.end]
        return [question(after_end) for question in self._questions]

    def _learn(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self.steps += 1


def teach(text_encoder: Any, vocabulary: Vocabulary, space: Workspace, minutes: float = MINUTES) -> None:
    """Train a text encoder to answer the questions about captions."""
    trainer, rng = ReadingTrainer(text_encoder, vocabulary, space), dice(77)
    for spent in until_spent(60 * minutes * space.effort):
        loss, right = trainer.step(rng, spent)
        if trainer.steps % REPORT_EVERY == 0:
            log.info("text encoder: step %d, loss %.3f, right %.3f", trainer.steps, loss, right)
