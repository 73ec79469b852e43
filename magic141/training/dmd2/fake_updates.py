"""The fake score's updates, several for one of the generator (two time scales: Yin et al. 2024, section 4.2)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from magic141.diffusion.flow import velocity_target
from magic141.diffusion.samplers import randn_like
from magic141.training.context import TrainContext, sum_over_workers
from magic141.training.dmd2.adversarial import Discriminator
from magic141.training.dmd2.backward_simulation import Generated
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.distribution_matching import Noise, score_times
from magic141.training.dmd2.networks import GuidedScores
from magic141.training.engines.accumulation import LossOfPart, Parts
from magic141.training.engines.engine import Engine


@dataclass(frozen=True)
class FakeUpdates:
    """Trains the fake score, and with it the discriminator if there is one.

    Attributes:
        config: the stage's settings.
        guided: real and fake score.
        engine: trains the fake score.
        discriminator: the head on its features, and its losses.
        parts: how many clips a pass takes.
        replay: the student's latest batches, which are trained on.
        context: the worker.
    """

    config: Dmd2Config
    guided: GuidedScores
    engine: Engine
    discriminator: Discriminator
    parts: Parts
    replay: deque[Generated]
    context: TrainContext

    def replay_if_finite(self, made: Generated) -> bool:
        """Keeps clips if those of all workers are finite, and says whether: they are trained on in later steps, too."""
        num_broken = sum_over_workers((~torch.isfinite(made.x0)).sum(), self.context)
        if not num_broken:
            self.replay.append(made)
        return not num_broken

    def run(self, num_updates: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Takes some updates, each on one of the kept batches.

        Returns:
            The losses of the last update, and the largest gradient norm of all: inf or NaN if one was skipped.
        """
        values: dict[str, Tensor] = {}
        norms = []
        for _ in range(num_updates):
            kept = self.replay[int(torch.randint(len(self.replay), (), generator=rng))]
            self.guided.scores.set_exit(kept.exit_step)
            values = self.parts.accumulate(self.engine, *self.losses(kept, rng))
            norms.append(self.engine.step())
        return {**values, "fake_grad_norm": torch.tensor(norms).max()}

    def losses(self, kept: Generated, rng: torch.Generator) -> list[LossOfPart]:
        """The fake score's loss on generated clips, and the discriminator's; draws their noise from `rng`."""
        own = Noise(randn_like(kept.x0, rng), score_times(kept.x0, self.config, rng))

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            made, noise = kept.part(rows), own.part(rows)
            with self.engine.autocast():
                u = self.guided.fake(self.engine, noise.on(made.x0), noise.sigma, made.batch, made.w)
                loss = mse_loss(u, velocity_target(made.x0, noise.noise))
            return loss, {"fake_loss": loss}

        return [loss_of, *(self.discriminator.losses(kept, rng) if self.config.is_adversarial else ())]
