"""DMD2 step distillation with real and fake score (paper, section 3.1; Yin et al. 2024).

The generator's clean estimates are pushed along the difference between two clean estimates: the real score's (by
default the frozen teacher, shifted a little towards the fake score) and the fake score's (the teacher with a trained
low-rank branch). `docs/distillation.md` says when to use which option.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from magic141.diffusion.flow import expand, interpolate, sample_sigma, velocity_target, x0_from_velocity
from magic141.diffusion.samplers import randn_like
from magic141.models.config import TransformerConfig
from magic141.training.adversarial import discriminator_loss, generator_loss
from magic141.training.backward_simulation import BackwardSimulation, Generated
from magic141.training.collapse import CollapseWatch
from magic141.training.conditions import Batch, BatchMaker, step_generator
from magic141.training.dmd2_config import Dmd2Config
from magic141.training.dmd2_networks import (
    Guidance,
    GuidedScores,
    build_generator,
    build_scores,
    export_generator,
    takes_image,
)
from magic141.training.dmd2_validation import Dmd2Validation
from magic141.training.ema import Ema
from magic141.training.engine import Engine, make_engine
from magic141.training.exit_step import draw_exit_step
from magic141.training.objective import TrainContext
from magic141.training.single import make_sampler

MIN_NORMALISER = 1e-4
_NO_RANK = 4095  # used in place of the rank where all ranks must draw the same numbers


def dmd2_gradient(x: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """`g = (x0_fake - x0_real) / mean|x - x0_real|`, [B, ...].

    The mean is per sample and has a floor; elements of g that are not finite become zero.

    Args:
        x: the generator's clean estimate, [B, ...].
        x0_real: the real score's clean estimate of the noised x, [B, ...].
        x0_fake: the fake score's clean estimate of the noised x, [B, ...].
    """
    normaliser = (x - x0_real).abs().flatten(1).mean(1).clamp_min(MIN_NORMALISER)
    gradient = (x0_fake - x0_real) / expand(normaliser, x)
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def dmd2_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """`0.5*mean((x - stopgrad(x - g))^2)`, whose derivative by x is g / number of elements; x, gradient: [B, ...]."""
    return 0.5 * mse_loss(x, (x - gradient).detach())


@dataclass(frozen=True)
class Dmd2Spec:
    """What a worker needs to build the objective.

    Attributes:
        config: the stage's settings.
        model: the transformer's settings.
        data: the data artifact.
        teacher: diffusers folder of the undistilled network; a T2V teacher gives a T2V student.
        student: diffusers folder of the CFG-distilled network from which the student starts, unless `config.start` is
            "teacher".
    """

    config: Dmd2Config
    model: TransformerConfig
    data: Path
    teacher: Path
    student: Path

    def build(self, context: TrainContext) -> Dmd2:
        """Loads data and networks on this worker."""
        return Dmd2(self, context)


@dataclass(frozen=True)
class Drawn:
    """An update's exit step, and whether its continued clips continue frames that the student has generated."""

    exit_step: int
    own_frames: bool


class Dmd2:
    """The DMD2 objective; a step is several fake-score updates on generated clips, then one generator update."""

    def __init__(self, spec: Dmd2Spec, context: TrainContext) -> None:
        config = self.config = spec.config
        self.context = context
        with_image = takes_image(spec.teacher)
        self.maker = BatchMaker.open(spec.data, spec.model.window_frames, with_image, config.continued_fraction)
        self.sampler = make_sampler(self.maker, config, context)
        generator = build_generator(config, spec.teacher, spec.student, context.seed)
        # Build this engine before loading the scores: only then can the host copy of these weights be freed.
        self.generator = make_engine(generator, config.optimizer, config.num_steps, config.precision, context)
        self.chain = BackwardSimulation(config, self.generator)
        self.scores = build_scores(config, spec.teacher, spec.student, context.seed)
        num_fake = config.num_steps * config.fake_updates_per_step + config.fake_warmup_updates
        self.fake = make_engine(self.scores, config.fake_optimizer, num_fake, config.precision, context)
        self.guided = GuidedScores(self.scores, config.real_score, config.is_guided)
        self.ema = Ema(self.generator.module, config.ema_decay)
        self.replay: deque[Generated] = deque(maxlen=config.replay_batches)
        self.validation = Dmd2Validation(self.maker, self.guided, self.generator, config, spec.data, context)
        self.watch = CollapseWatch(config.collapse)

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Generator and fake score."""
        return {"generator": self.generator, "fake": self.fake}

    def step(self, step: int) -> dict[str, Tensor | float]:
        """Several fake-score updates, then one generator update.

        The generator is evaluated twice at the exit step: without a graph for the scores, and again for its gradient.
        """
        rng = step_generator(self.context.seed, step, self.context.rank)
        batch = self.maker.make(self.sampler.indices(step), rng).to(self.context.device)
        w = Guidance.draw(self.config, len(batch.x0), rng).to(self.context.device)
        drawn = self.draw(step)
        if drawn.own_frames:
            batch = self.chain.with_own_frames(batch, w, rng)
        state = self.chain.state(batch, w, drawn.exit_step, rng)
        made = self.chain.generate(state, batch, w, drawn.exit_step)
        self.replay.append(made)
        warmup = self.config.fake_warmup_updates if step == 0 else 0
        fake_values = self.update_fake(warmup + self.config.fake_updates_per_step, rng)
        self.scores.set_exit(drawn.exit_step)
        gradient = self.distribution_matching_gradient(made.x0, batch, w, rng)
        x0 = self.chain.clean_estimate(self.generator, state, batch, w)
        loss, other = dmd2_loss(x0, gradient), self.other_losses(x0, batch, w, rng)
        self.generator.backward(sum(other.values(), loss))
        grad_norm = self.generator.step()
        self.ema.update()
        return {
            "loss": loss.detach(),
            **fake_values,
            **{name: value.detach() for name, value in other.items()},
            "grad_norm": grad_norm,
            "dmd_gradient": gradient.square().mean(),
            "x0_std": made.x0.std(),
        }

    def draw(self, step: int) -> Drawn:
        """Draws what is random about an update but the same on all ranks."""
        rng = step_generator(self.context.seed, step, _NO_RANK)
        exit_step = draw_exit_step(self.config.exit_shares, rng)
        return Drawn(exit_step, bool(torch.rand((), generator=rng) < self.config.own_frames_fraction))

    def update_fake(self, num_updates: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Trains the fake score by flow matching on replayed generator batches.

        Returns:
            The losses of the last update, and the largest gradient norm of all: inf or NaN if one was skipped.
        """
        values: dict[str, Tensor] = {}
        norms = []
        for _ in range(num_updates):
            kept = self.replay[int(torch.randint(len(self.replay), (), generator=rng))]
            self.scores.set_exit(kept.exit_step)
            noise = randn_like(kept.x0, rng)
            sigma = self.score_times(kept.x0, rng)
            with self.fake.autocast():
                x_t = interpolate(kept.x0, noise, sigma)
                u = self.guided.fake(self.fake, x_t, sigma, kept.batch, kept.w)
                loss = values["fake_loss"] = mse_loss(u, velocity_target(kept.x0, noise))
                if self.config.adversarial_weight > 0:
                    values["discriminator_loss"] = self.discriminator_loss(kept, rng)
                    loss = loss + self.config.discriminator_weight * values["discriminator_loss"]
            self.fake.backward(loss)
            norms.append(self.fake.step())
        values["fake_grad_norm"] = torch.tensor(norms).max()
        return {name: value.detach() for name, value in values.items()}

    @torch.no_grad()
    def distribution_matching_gradient(self, x: Tensor, batch: Batch, w: Guidance, rng: torch.Generator) -> Tensor:
        """The DMD2 gradient at the detached clean estimate x, at random score times; both [B, C, T, h, w]."""
        sigma = self.score_times(x, rng)
        z_t = interpolate(x, randn_like(x, rng), sigma)
        with self.fake.autocast():
            fake = self.guided.fake(self.scores, z_t, sigma, batch, w)
            real = self.guided.real(z_t, sigma, batch, w)
        return dmd2_gradient(x, x0_from_velocity(z_t, real, sigma), x0_from_velocity(z_t, fake, sigma))

    def other_losses(self, x: Tensor, batch: Batch, w: Guidance, rng: torch.Generator) -> dict[str, Tensor]:
        """The weighted adversarial and regression losses, if switched on."""
        losses = {}
        if self.config.adversarial_weight > 0:
            losses["adversarial_loss"] = self.config.adversarial_weight * self.adversarial_loss(x, batch, w, rng)
        if self.config.regression_weight > 0:
            losses["regression_loss"] = self.config.regression_weight * mse_loss(x, batch.x0)
        return losses

    def discriminator_loss(self, kept: Generated, rng: torch.Generator) -> Tensor:
        """The head's loss in telling the real clips of a batch from the generated ones."""
        logits = [self.logits(self.fake, x, kept.batch, kept.w, rng) for x in (kept.batch.x0, kept.x0)]
        return discriminator_loss(*logits)

    def adversarial_loss(self, x: Tensor, batch: Batch, w: Guidance, rng: torch.Generator) -> Tensor:
        """The generator's adversarial loss; its gradient reaches x alone, not the fake score's weights."""
        leaf = x.detach().requires_grad_()
        with self.fake.autocast():
            loss = generator_loss(self.logits(self.scores, leaf, batch, w, rng))
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach() + ((x - leaf.detach()) * gradient).sum()

    def logits(self, network: Any, x: Tensor, batch: Batch, w: Guidance, rng: torch.Generator) -> Tensor:
        """The head's logits [B, tokens] for clean latents x [B, C, T, h, w], noised first if so configured."""
        noised = self.config.adversarial_input == "noised"
        sigma = self.score_times(x, rng) if noised else torch.zeros(len(x), device=x.device)
        self.guided.fake(network, interpolate(x, randn_like(x, rng), sigma), sigma, batch, w)
        return self.scores.logits()

    def score_times(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Random times [B] at which the scores are evaluated."""
        config = self.config
        low, high = config.min_score_time, config.max_score_time
        return sample_sigma(len(x), config.score_shift, rng, low, high).to(x.device)

    def validate(self) -> dict[str, float]:
        """Metrics of the averaged student's clips, compared with the many-step model's."""
        with self.ema.applied():
            return self.validation.figures()

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the best average; raises UserError when the student has collapsed."""
        self.watch.judge(step, values, self.ema.state_dict())

    @property
    def replicated(self) -> tuple[str, ...]:
        """EMA and watch, unless ZeRO-3 splits their weights over the workers; replayed batches always differ."""
        return () if self.generator.sharded else ("ema", "watch")

    def state_dict(self) -> dict[str, Any]:
        """The EMA, the watch and the replayed batches; the engines save the rest."""
        return {"ema": self.ema.state_dict(), "watch": self.watch.state_dict(), "replay": list(self.replay)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.ema.load_state_dict(state["ema"])
        self.watch.load_state_dict(state["watch"])
        self.replay.extend(state["replay"])

    def export(self, folder: Path) -> None:
        """Writes the averaged student as a diffusers folder `transformer`, and the watch's record."""
        if self.config.keep == "best" and self.watch.best is not None:
            self.ema.load_state_dict(self.watch.best)
        state = self.ema.full_state_dict(self.generator)
        if self.context.is_main:
            export_generator(self.generator.module, state, folder / "transformer")
            self.watch.write(folder, self.ema.num_updates)
