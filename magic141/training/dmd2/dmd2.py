"""DMD2 step distillation with real and fake score (paper, section 3.1; Yin et al. 2024).

The generator's clean estimates are pushed along the difference between two clean estimates: the real score's (by
default the frozen teacher, shifted a little towards the fake score) and the fake score's (the teacher with a trained
low-rank branch). `docs/distillation.md` says when to use which option.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from magic141.diffusion.flow import x0_from_velocity
from magic141.models.adapters import save_network
from magic141.training.batch_sampler import BatchSampler
from magic141.training.batches import Batch, BatchMaker
from magic141.training.context import TrainContext
from magic141.training.dmd2.adversarial import AdversarialLoss, Discriminator
from magic141.training.dmd2.backward_simulation import BackwardSimulation, ChainStep, Generated, Simulated
from magic141.training.dmd2.collapse import CollapseWatch
from magic141.training.dmd2.distribution_matching import Noise, dmd2_gradient, dmd2_loss
from magic141.training.dmd2.exit_shares import exit_shares
from magic141.training.dmd2.exit_step import ExitDraw
from magic141.training.dmd2.fake_updates import FakeUpdates
from magic141.training.dmd2.networks import (
    Guidance,
    GuidedScores,
    build_generator,
    build_scores,
    takes_image,
)
from magic141.training.dmd2.validation import Dmd2Validation
from magic141.training.engines.accumulation import Parts
from magic141.training.engines.ema import Ema
from magic141.training.engines.engine import Engine
from magic141.training.engines.make import make_engine
from magic141.training.random_numbers import shared_generator, step_generator

if TYPE_CHECKING:
    from magic141.training.dmd2.spec import Dmd2Spec

LEFT_OUT: dict[str, Tensor | float] = {"x0_std": math.nan, "grad_norm": math.nan, "fake_grad_norm": math.nan}


class Dmd2:
    """The DMD2 objective; a step is several fake-score updates on generated clips, then one generator update."""

    def __init__(self, spec: Dmd2Spec, context: TrainContext) -> None:
        config = self.config = spec.config
        self.context = context
        with_image = takes_image(spec.teacher)
        self.maker = BatchMaker.open(spec.data, spec.model.window_frames, with_image, config.continued_fraction)
        self.sampler = BatchSampler.of(self.maker.dataset, config, context)
        generator = build_generator(spec, context)
        # Before loading the scores: only then can the host copy of these weights be freed, and their place be shared.
        self.generator = make_engine(generator, config.optimizer, config.num_steps, config.precision, context)
        self.parts = Parts.of(config)
        self.chain = BackwardSimulation(config, self.generator, self.parts)
        self.scores = build_scores(spec, context, self.generator.module)
        num_fake = config.num_steps * config.fake_updates_per_step + config.fake_warmup_updates
        self.fake = make_engine(self.scores, config.fake_optimizer, num_fake, config.precision, context)
        self.guided = GuidedScores(self.scores, config.real_score, config.is_guided)
        self.discriminator = Discriminator(config, self.guided, self.fake)
        self.ema = Ema(self.generator.module, config.ema_decay)
        replay: deque[Generated] = deque(maxlen=config.replay_batches)
        self.fake_updates = FakeUpdates(config, self.guided, self.fake, self.discriminator, self.parts, replay, context)
        self.validation = Dmd2Validation(self.maker, self.guided, self.chain, spec.data, context)
        self.watch = CollapseWatch(config.collapse, config.num_steps)
        self.num_done = 0  # steps, with those that were left out

    @property
    def first_step(self) -> int:
        """Steps before 0 train the fake score alone, as often as the others do."""
        return -math.ceil(self.config.fake_warmup_updates / self.config.fake_updates_per_step)

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Generator and fake score."""
        return {"generator": self.generator, "fake": self.fake}

    def step(self, step: int) -> dict[str, Tensor | float]:
        """Several fake-score updates, then one generator update; before step 0, the fake score's alone.

        The generator is evaluated twice at the exit step: without a graph for the scores, and again for its gradient.
        """
        if step < 0:
            return self.warm_up(step)
        self.num_done = step + 1
        rng = step_generator(self.context.seed, step, self.context.share)
        state, made = self.simulate(step, rng)
        if not self.fake_updates.replay_if_finite(made):
            return LEFT_OUT
        fake_values = self.fake_updates.run(self.config.fake_updates_per_step, rng)
        values = self.update_generator(state, made, rng)
        self.ema.update()
        return {**values, **fake_values, "x0_std": made.x0.std()}

    def warm_up(self, step: int) -> dict[str, Tensor | float]:
        """Trains the fake score alone, on new clips."""
        config = self.config
        done = (step - self.first_step) * config.fake_updates_per_step
        place = config.num_steps + done  # beyond the last step, so that its clips are not those of the first updates
        rng = step_generator(self.context.seed, place, self.context.share)
        if not self.fake_updates.replay_if_finite(self.simulate(place, rng).made):
            return LEFT_OUT
        return {**self.fake_updates.run(min(config.fake_updates_per_step, config.fake_warmup_updates - done), rng)}

    def simulate(self, step: int, rng: torch.Generator) -> Simulated:
        """The student's clips of a step."""
        batch = self.maker.make(self.sampler.indices(step), rng).to(self.context.device)
        w = Guidance.draw(self.config, len(batch.x0), rng).to(self.context.device)
        drawn = self.draw_exit(step)
        if drawn.own_frames:
            batch = self.chain.with_own_frames(batch, w, rng)
        return self.chain.simulate(batch, w, drawn.exit_step, rng)

    def draw_exit(self, step: int) -> ExitDraw:
        """Draws what is random about an update but the same on all ranks."""
        rng = shared_generator(self.context.seed, step)
        return ExitDraw.of(exit_shares(self.config), self.config.own_frames_fraction, rng)

    def update_generator(self, state: ChainStep, made: Generated, rng: torch.Generator) -> dict[str, Tensor | float]:
        """One generator update; `made` are its clips from the chain's `state`."""
        batch, w = made.batch, made.w
        self.scores.set_exit(made.exit_step)
        gradient = self.distribution_matching_gradient(made.x0, batch, w, rng)
        head_noise = self.discriminator.noise(made.x0, rng) if self.config.is_adversarial else None

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            part = made.part(rows)
            adversarial = None
            if head_noise:  # first, so that the graphs of fake score and generator are not in memory together
                adversarial = self.discriminator.generator_loss(part.x0, part.batch, part.w, head_noise.part(rows))
            x0 = self.chain.clean_estimate(state.part(rows), part.batch, part.w)
            loss = dmd2_loss(x0, gradient[rows])
            others = self.other_losses(x0, part.batch, adversarial)
            return sum(others.values(), loss), {"loss": loss, **others}

        losses = self.parts.accumulate(self.generator, loss_of)
        return {**losses, "grad_norm": self.generator.step(), "dmd_gradient": gradient.square().mean()}

    @torch.no_grad()
    def distribution_matching_gradient(self, x: Tensor, batch: Batch, w: Guidance, rng: torch.Generator) -> Tensor:
        """The DMD2 gradient at the detached clean estimate x, at random score times; both [B, C, T, h, w]."""
        noise = Noise.draw(x, self.config, rng)
        x_t, sigma = noise.on(x), noise.sigma
        with self.fake.autocast():
            fake = self.parts.over(partial(self.guided.fake, self.scores), batch, w)(x_t, sigma)
            real = self.parts.over(self.guided.real, batch, w)(x_t, sigma)
        return dmd2_gradient(x, x0_from_velocity(x_t, real, sigma), x0_from_velocity(x_t, fake, sigma))

    def other_losses(self, x: Tensor, batch: Batch, adversarial: AdversarialLoss | None) -> dict[str, Tensor]:
        """The weighted adversarial and regression losses of clips x [B, C, T, h, w], if switched on."""
        config, losses = self.config, {}
        if adversarial is not None:
            losses["adversarial_loss"] = config.adversarial_weight * adversarial(x)
        if config.regression_weight > 0:
            losses["regression_loss"] = config.regression_weight * mse_loss(x, batch.x0)
        return losses

    def begin(self) -> dict[str, float]:
        """Metrics of the student's clips before its first update."""
        self.watch.start = self.validate()
        return self.watch.start

    def validate(self) -> dict[str, float]:
        """Metrics of the averaged student's clips, compared with the many-step model's."""
        with self.ema.applied():
            return self.validation.figures(self.num_done)

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the best average where it may be exported."""
        kept = self.config.keep == "best" and self.may_export
        self.watch.judge(step, values, self.ema.state_dict() if kept else {})

    @property
    def may_export(self) -> bool:
        """Whether this worker exports weights, or its part of them, and so keeps the best ones."""
        return self.context.is_main or self.generator.sharded

    def require_sound(self) -> None:
        """Raises UserError if the student has collapsed."""
        self.watch.require_sound()

    @property
    def replicated(self) -> tuple[str, ...]:
        """EMA and watch, unless ZeRO-3 splits their weights over the workers; replayed batches always differ."""
        return () if self.generator.sharded else ("ema", "watch")

    def state_dict(self) -> dict[str, Any]:
        """The EMA, the watch and the replayed batches; the engines save the rest."""
        return {
            "ema": self.ema.state_dict(),
            "watch": self.watch.state_dict(),
            "replay": list(self.fake_updates.replay),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.ema.load_state_dict(state["ema"])
        self.watch.load_state_dict(state["watch"] if self.may_export else {**state["watch"], "best": None})
        # those of another number of workers do not divide into today's parts, and are soon replaced anyway
        kept = (made for made in state["replay"] if len(made.x0) == self.parts.num_clips)
        self.fake_updates.replay.extend(made.to(self.context.device) for made in kept)

    def export(self, folder: Path) -> None:
        """Writes the averaged student as a diffusers folder `transformer`, and the watch's record."""
        exported_step = self.config.num_steps
        if self.config.keep == "best" and self.watch.best_step is not None:
            exported_step = self.watch.best_step
            if self.watch.best:
                self.ema.load_state_dict(self.watch.best)
        state = self.ema.full_state_dict(self.generator)
        if self.context.is_main:
            save_network(self.generator.module, state, folder / "transformer")
            self.watch.write(folder, exported_step)
