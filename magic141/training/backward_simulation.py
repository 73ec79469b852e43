"""The student's own chain in training: what it sees at a step of it, and what it makes (DMD2, section 4.5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from magic141.diffusion.flow import interpolate, sigma_grid, x0_from_velocity
from magic141.diffusion.samplers import ChainStep, chain_input, randn_like
from magic141.models.transformer import Prefix, make_prefix, velocity
from magic141.training.conditions import Batch
from magic141.training.dmd2_config import Dmd2Config
from magic141.training.dmd2_networks import Guidance
from magic141.training.engine import Engine


@dataclass(frozen=True)
class Generated:
    """A generator batch, without a graph: clean estimates, conditions, guidance, and where it left the chain."""

    x0: Tensor
    batch: Batch
    w: Guidance
    exit_step: int


@dataclass(frozen=True)
class BackwardSimulation:
    """Runs the generator's chain as it is run in use."""

    config: Dmd2Config
    generator: Engine

    @property
    def sigmas(self) -> Tensor:
        """The student's grid, [n + 1]."""
        return sigma_grid(self.config.num_inference_steps, self.config.shift)

    @torch.no_grad()
    def state(self, batch: Batch, w: Guidance, exit_step: int, rng: torch.Generator) -> ChainStep:
        """What the generator sees at `exit_step`: its own chain up to there, or noised real latents."""
        noise = randn_like(batch.x0, rng)
        if self.config.generator_input == "noised_real":
            sigma = self.sigmas[exit_step].to(batch.x0.device).expand(len(batch.x0))
            return ChainStep(interpolate(batch.x0, noise, sigma), sigma)

        def predict(x_t: Tensor, sigma: Tensor) -> Tensor:
            with self.generator.autocast():
                return velocity(self.generator.module, x_t, sigma, batch.cond, batch.prefix, w.student)

        return chain_input(predict, noise, self.sigmas, exit_step, self.config.sampler, rng)

    def clean_estimate(self, generator: Any, state: ChainStep, batch: Batch, w: Guidance) -> Tensor:
        """The generator's x0 at one step of its chain, [B, C, T, h, w]; of its engine, with a graph."""
        with self.generator.autocast():
            u = velocity(generator, state.x_t, state.sigma, batch.cond, batch.prefix, w.student)
        return x0_from_velocity(state.x_t, u, state.sigma)

    @torch.no_grad()
    def generate(self, state: ChainStep, batch: Batch, w: Guidance, exit_step: int) -> Generated:
        """What the fake score learns from, without a graph: at 13B one is as large as all that its updates need."""
        return Generated(self.clean_estimate(self.generator.module, state, batch, w), batch, w, exit_step)

    def with_own_frames(self, batch: Batch, w: Guidance, rng: torch.Generator) -> Batch:
        """The batch with its continued samples going on from a window that the student has made itself.

        They know the video's first latent frame as before, and in place of a real clip's frames the last ones of the
        student's whole chain from that first frame: what a second window of a long video is given in use (self
        forcing: Huang et al. 2025, "Self Forcing: Bridging the Train-Test Gap in Autoregressive Video Diffusion").

        On every rank a window is made, needed or not: a network that is split over the ranks takes all of them.
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
        """The student's windows that begin at the first latent frame, [B, C, T, h, w]."""
        assert batch.prefix is not None
        first = replace(batch, prefix=make_prefix(batch.prefix.latents, 1))
        last = self.config.num_inference_steps - 1
        return self.generate(self.state(first, w, last, rng), first, w, last).x0
