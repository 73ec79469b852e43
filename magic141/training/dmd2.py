"""DMD2 step distillation with real and fake score on one shared base (paper, section 3.1; Yin et al. 2024).

The generator's clean estimates are pushed along the difference of two clean estimates: the real score's (the frozen
base, shifted a little towards the fake one) and the fake score's (the base with a trained low-rank branch).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from magic141.data.dataset import ClipDataset, load_info, load_null_text
from magic141.diffusion.flow import interpolate, sample_sigma, sigma_grid, velocity_target, x0_from_velocity
from magic141.diffusion.guidance import guided_velocity
from magic141.diffusion.samplers import ChainStep, chain_input, randn_like
from magic141.models.config import TransformerConfig
from magic141.models.scores import SharedScores
from magic141.models.transformer import add_guidance_embedding, load_transformer, velocity
from magic141.training.conditions import Batch, BatchMaker, step_generator
from magic141.training.config import Dmd2Config
from magic141.training.ema import Ema
from magic141.training.engine import Engine, make_engine
from magic141.training.objective import TrainContext
from magic141.training.single import make_sampler, save_network

MIN_NORMALISER = 1e-4
_NO_RANK = 4095  # random numbers that must be the same on all ranks


def dmd2_gradient(x: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """`g = (x0_fake - x0_real) / mean|x - x0_real|`, the mean per sample, with a floor; NaN counts as zero.

    Args:
        x: the generator's clean estimate [B, ...].
        x0_real: the real score's clean estimate of the noised x.
        x0_fake: the fake score's.
    """
    normaliser = (x - x0_real).abs().flatten(1).mean(1).clamp_min(MIN_NORMALISER)
    gradient = (x0_fake - x0_real) / normaliser.reshape(-1, *[1] * (x.dim() - 1))
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def dmd2_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """`0.5*||x - stopgrad(x - g)||^2`, whose derivative with respect to x is g over the number of elements."""
    return 0.5 * mse_loss(x, (x - gradient).detach())


@dataclass(frozen=True)
class Dmd2Spec:
    """What a worker needs: `student` is the CFG-distilled model, which the generator starts from."""

    config: Dmd2Config
    model: TransformerConfig
    data: Path
    teacher: Path
    student: Path

    def build(self, context: TrainContext) -> Dmd2:
        """Loads data and networks on this worker."""
        return Dmd2(self, context)


@dataclass(frozen=True)
class Generated:
    """A generator batch kept for the fake score: detached clean estimates and their conditions."""

    x0: Tensor
    batch: Batch


class Dmd2:
    """One step: several updates of the fake score on generated clips, then one update of the generator."""

    def __init__(self, spec: Dmd2Spec, context: TrainContext) -> None:
        config = self.config = spec.config
        self.context = context
        self.maker = BatchMaker(
            dataset=ClipDataset.open(spec.data, "train"),
            null_text=load_null_text(spec.data),
            num_latent_frames=(spec.model.window_frames - 1) // load_info(spec.data).temporal_factor + 1,
            image_condition=True,
            prefix_two_fraction=config.prefix_two_fraction,
        )
        self.validation = replace(self.maker, dataset=ClipDataset.open(spec.data, "validation"))
        self.sampler = make_sampler(self.maker, config, context)
        self.sigmas = sigma_grid(config.num_inference_steps, config.shift)
        generator = add_guidance_embedding(load_transformer(spec.student))
        base = load_transformer(spec.teacher if config.real_score == "teacher" else spec.student)
        scores = SharedScores(base, config.lora_rank, config.a_weak, config.a_strong, seed=context.seed)
        num_fake = config.num_steps * config.fake_updates_per_step + config.fake_warmup_updates
        self.generator = make_engine(generator, config.optimizer, config.num_steps, config.precision, context)
        self.fake = make_engine(scores, config.fake_optimizer, num_fake, config.precision, context)
        self.scores = scores
        self.ema = Ema(self.generator.module, config.ema_decay)
        self.replay: deque[Generated] = deque(maxlen=config.replay_batches)

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Generator and fake score."""
        return {"generator": self.generator, "fake": self.fake}

    def step(self, step: int) -> dict[str, Tensor | float]:
        """Fake updates, then one generator update."""
        rng = step_generator(self.context.seed, step, self.context.rank)
        batch = self.maker.make(self.sampler.indices(step), rng).to(self.context.device)
        x = self.generate(batch, step, rng)
        self.replay.append(Generated(x.detach(), batch))
        warmup = self.config.fake_warmup_updates if step == 0 else 0
        fake_loss = self.update_fake(warmup + self.config.fake_updates_per_step, rng)
        gradient = self.distribution_matching_gradient(x.detach(), batch, rng)
        loss = dmd2_loss(x, gradient)
        self.generator.backward(loss)
        grad_norm = self.generator.step()
        self.ema.update()
        return {
            "loss": loss.detach(),
            "fake_loss": fake_loss,
            "grad_norm": grad_norm,
            "dmd_gradient": gradient.square().mean(),
            "x0_std": x.detach().std(),
        }

    def generate(self, batch: Batch, step: int, rng: torch.Generator) -> Tensor:
        """The generator's clean estimate at a random step of its chain, with a gradient through that step only."""
        exit_step = int(
            torch.randint(len(self.sigmas) - 1, (), generator=step_generator(self.context.seed, step, _NO_RANK))
        )
        state = self.generator_input(batch, exit_step, rng)
        w = self.guidance(batch)
        with self.generator.autocast():
            u = velocity(self.generator, state.x_t, state.sigma, batch.cond, batch.prefix, w)
        return x0_from_velocity(state.x_t, u, state.sigma)

    @torch.no_grad()
    def generator_input(self, batch: Batch, exit_step: int, rng: torch.Generator) -> ChainStep:
        """What the generator sees: its own chain up to `exit_step`, or noised real latents."""
        noise = randn_like(batch.x0, rng)
        if self.config.generator_input == "noised_real":
            sigma = self.sigmas[exit_step].to(batch.x0.device).expand(len(batch.x0))
            return ChainStep(interpolate(batch.x0, noise, sigma), sigma)
        w = self.guidance(batch)

        def predict(x_t: Tensor, sigma: Tensor) -> Tensor:
            with self.generator.autocast():
                return velocity(self.generator.module, x_t, sigma, batch.cond, batch.prefix, w)

        return chain_input(predict, noise, self.sigmas, exit_step, self.config.sampler, rng)

    def update_fake(self, num_updates: int, rng: torch.Generator) -> Tensor:
        """Flow matching of the fake score on replayed generator batches; only the adapter learns."""
        loss = torch.zeros(())
        for _ in range(num_updates):
            kept = self.replay[int(torch.randint(len(self.replay), (), generator=rng))]
            noise = randn_like(kept.x0, rng)
            sigma = self.score_times(kept.x0, rng)
            x_t = interpolate(kept.x0, noise, sigma)
            with self.fake.autocast():
                w = self.score_guidance(kept.batch)
                u = velocity(self.fake, x_t, sigma, kept.batch.cond, kept.batch.prefix, w)
                loss = mse_loss(u, velocity_target(kept.x0, noise))
            self.fake.backward(loss)
            self.fake.step()
        return loss.detach()

    @torch.no_grad()
    def distribution_matching_gradient(self, x: Tensor, batch: Batch, rng: torch.Generator) -> Tensor:
        """The DMD2 gradient at the detached clean estimate x [B, C, T, h, w], at random score times."""
        sigma = self.score_times(x, rng)
        z_t = interpolate(x, randn_like(x, rng), sigma)
        with self.fake.autocast():
            fake = velocity(self.scores, z_t, sigma, batch.cond, batch.prefix, self.score_guidance(batch))
            real = self.real_velocity(z_t, sigma, batch)
        return dmd2_gradient(x, x0_from_velocity(z_t, real, sigma), x0_from_velocity(z_t, fake, sigma))

    def real_velocity(self, z_t: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """The real score at `real_guidance_scale`: an input of a CFG-distilled base, explicit for the teacher."""
        w = self.score_guidance(batch)
        conditional = self.scores.real(z_t, sigma, batch.cond, batch.prefix, w)
        scale = self.config.real_guidance_scale
        if w is not None or scale == 1:
            return conditional
        unconditional = self.scores.real(z_t, sigma, batch.uncond, batch.prefix, w)
        return guided_velocity(unconditional, conditional, torch.full_like(sigma, scale))

    def score_times(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Times of the scores, shape [B]."""
        config = self.config
        low, high = config.min_score_time, config.max_score_time
        return sample_sigma(len(x), config.score_shift, rng, low, high).to(x.device)

    def guidance(self, batch: Batch) -> Tensor:
        """The student's w, shape [B]."""
        return torch.full((len(batch.x0),), self.config.student_guidance_scale, device=batch.x0.device)

    def score_guidance(self, batch: Batch) -> Tensor | None:
        """The scores' w, shape [B]; none for the teacher, which has no such input."""
        if self.config.real_score == "teacher":
            return None
        return torch.full((len(batch.x0),), self.config.real_guidance_scale, device=batch.x0.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The averaged student's first step on validation clips: spread and distance to the truth, noise fixed."""
        num_clips = min(64, len(self.validation.dataset))
        rng = step_generator(self.context.seed, -1)
        batch = self.validation.make(torch.arange(num_clips), rng).to(self.context.device)
        with self.ema.applied():
            state = self.generator_input(batch, len(self.sigmas) - 2, rng)
            with self.generator.autocast():
                u = velocity(
                    self.generator.module, state.x_t, state.sigma, batch.cond, batch.prefix, self.guidance(batch)
                )
            x = x0_from_velocity(state.x_t, u, state.sigma)
        return {
            "validation_variance_ratio": float(x.var() / batch.x0.var()),
            "validation_motion_ratio": float(x.diff(dim=2).square().mean() / batch.x0.diff(dim=2).square().mean()),
            "validation_mean_drift": float((x.mean((0, 2, 3, 4)) - batch.x0.mean((0, 2, 3, 4))).norm()),
        }

    def state_dict(self) -> dict[str, Any]:
        """The average and the replayed batches; the engines save the rest."""
        return {"ema": self.ema.state_dict(), "replay": list(self.replay)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.ema.load_state_dict(state["ema"])
        self.replay.extend(state["replay"])

    def export(self, folder: Path) -> None:
        """Writes the averaged student as a diffusers folder `transformer`."""
        state = self.ema.full_state_dict(self.generator)
        if self.context.is_main:
            save_network(self.generator.module, state, folder / "transformer")
