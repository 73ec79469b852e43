"""Backward simulation: the student's own sampling chain provides its training inputs (DMD2, section 4.5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from magic141.diffusion.flow import interpolate, sigma_grid, x0_from_velocity
from magic141.diffusion.samplers import PredictVelocity, randn_like, sample
from magic141.models.transformer import Prefix, make_prefix, velocity
from magic141.training.batches import Batch
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.networks import Guidance
from magic141.training.engines.accumulation import Parts
from magic141.training.engines.engine import Engine


@dataclass(frozen=True)
class ChainStep:
    """The input of one step of the student's chain: noisy latents x_t [B, C, T, h, w] at times sigma [B]."""

    x_t: Tensor
    sigma: Tensor

    def part(self, rows: slice) -> ChainStep:
        """The samples `rows` of the batch."""
        return ChainStep(self.x_t[rows], self.sigma[rows])


@dataclass(frozen=True)
class Generated:
    """A batch of generated clips, without a graph.

    Attributes:
        x0: the generator's clean estimates, [B, C, T, h, w].
        batch: the conditions that they were generated from.
        w: their guidance scales.
        exit_step: the 0-based step of the chain that made them.
    """

    x0: Tensor
    batch: Batch
    w: Guidance
    exit_step: int

    def to(self, device: torch.device) -> Generated:
        """The same on another device."""
        return Generated(self.x0.to(device), self.batch.to(device), self.w.to(device), self.exit_step)

    def part(self, rows: slice) -> Generated:
        """The clips `rows`."""
        return Generated(self.x0[rows], self.batch.part(rows), self.w.part(rows), self.exit_step)


class Simulated(NamedTuple):
    """The student's clips, and the state of its chain from which their last evaluation was made."""

    state: ChainStep
    made: Generated


@dataclass(frozen=True)
class BackwardSimulation:
    """Runs the generator's sampling chain in training as at inference.

    Attributes:
        config: the stage's settings.
        generator: the student's engine.
        parts: how many clips the chain takes at once.
    """

    config: Dmd2Config
    generator: Engine
    parts: Parts

    @property
    def sigmas(self) -> Tensor:
        """The student's grid, [n + 1]."""
        return sigma_grid(self.config.num_inference_steps, self.config.shift)

    def simulate(self, batch: Batch, w: Guidance, exit_step: int, rng: torch.Generator) -> Simulated:
        """Runs the chain from noise up to the clean estimate at `exit_step`."""
        state = self.state(batch, w, exit_step, rng)
        return Simulated(state, self.generate(state, batch, w, exit_step))

    @torch.no_grad()
    def state(self, batch: Batch, w: Guidance, exit_step: int, rng: torch.Generator) -> ChainStep:
        """The generator's input at `exit_step`: its own chain up to there, or noised real latents (`noised_real`)."""
        noise = randn_like(batch.x0, rng)
        sigma = self.sigmas[exit_step].to(batch.x0.device).expand(len(batch.x0))
        if self.config.generator_input == "noised_real":
            return ChainStep(interpolate(batch.x0, noise, sigma), sigma)
        before = self.sigmas[: exit_step + 1]
        return ChainStep(sample(self.in_parts(batch, w), noise, before, self.config.sampler, rng), sigma)

    def clean_estimate(self, state: ChainStep, batch: Batch, w: Guidance) -> Tensor:
        """The generator's x0 [B, C, T, h, w] at one step of its chain, with a gradient."""
        u = self.velocity(self.generator, state.x_t, state.sigma, batch, w)
        return x0_from_velocity(state.x_t, u, state.sigma)

    @torch.no_grad()
    def generate(self, state: ChainStep, batch: Batch, w: Guidance, exit_step: int) -> Generated:
        """The clips that the fake score trains on.

        Without a graph: at 13B, keeping it would take as much memory as all that the fake score's updates need.
        """
        u = self.in_parts(batch, w)(state.x_t, state.sigma)
        return Generated(x0_from_velocity(state.x_t, u, state.sigma), batch, w, exit_step)

    def with_own_frames(self, batch: Batch, w: Guidance, rng: torch.Generator) -> Batch:
        """The batch, with its continued samples continuing a window that the student has generated itself.

        They still know their anchor. Their other known frames are no longer a real clip's, but the last ones that the
        student's whole chain generates from the anchor, as for the second window of a long video (self forcing: Huang
        et al. 2025, "Self Forcing: Bridging the Train-Test Gap in Autoregressive Video Diffusion").

        Every rank generates a window, needed or not: the forward pass of a network split over the ranks involves all.
        """
        prefix = batch.prefix
        assert prefix is not None
        num_known = prefix.mask[:, 0, :, 0, 0].sum(1).long()
        continued = (num_known > 1).nonzero().flatten()
        rows = continued if len(continued) else num_known.new_zeros(1)
        windows = self._windows(batch.part(rows), w.part(rows), rng)
        latents = prefix.latents.clone()
        for row, window in zip(continued.tolist(), windows, strict=False):
            num_carried = int(num_known[row]) - 1
            latents[row, :, 1 : 1 + num_carried] = window[:, -num_carried:]
        return replace(batch, prefix=Prefix(latents, prefix.mask))

    def _windows(self, batch: Batch, w: Guidance, rng: torch.Generator) -> Tensor:
        """The windows [B, C, T, h, w] that the student generates from the first latent frame alone."""
        assert batch.prefix is not None
        first = replace(batch, prefix=make_prefix(batch.prefix.latents, 1))
        last = self.config.num_inference_steps - 1
        return self.simulate(first, w, last, rng).made.x0

    def in_parts(self, batch: Batch, w: Guidance) -> PredictVelocity:
        """The generator without a graph; one that is split over the ranks is called equally often on all of them."""
        evaluate = partial(self.velocity, self.generator.module)
        return self.parts.over(evaluate, batch, w, everywhere=self.generator.sharded)

    def velocity(self, network: Any, x_t: Tensor, sigma: Tensor, batch: Batch, w: Guidance) -> Tensor:
        """The generator's velocity [B, C, T, h, w]; `network` is its engine for a gradient, and its module without."""
        with self.generator.autocast():
            return velocity(network, x_t, sigma, batch.cond, batch.prefix, w.student)
