"""Samples a trained network with given sampler, steps and guidance: single windows and long videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from magic141.diffusion.flow import sigma_grid
from magic141.diffusion.fused_windows import fuse_windows
from magic141.diffusion.guidance import guided_velocity
from magic141.diffusion.long_video import chain_windows, video_latent_frames
from magic141.diffusion.samplers import PredictVelocity, sample
from magic141.models.sampling import SamplingSettings
from magic141.models.text_embedding import TextEmbedding
from magic141.models.transformer import Prefix, condition, make_prefix, velocity


@dataclass(frozen=True)
class VideoGenerator:
    """A network with its sampling settings: one variant of a model.

    Attributes:
        model: the transformer (2C+1 input channels).
        null_text: the empty prompt, batch size 1.
        latent_frames: T of a window.
        settings: steps, time grid, guidance and sampler.
    """

    model: Any
    null_text: TextEmbedding
    latent_frames: int
    settings: SamplingSettings

    def in_steps(self, num_steps: int) -> Self:
        """The same with another number of steps."""
        return replace(self, settings=replace(self.settings, num_steps=num_steps))

    def sample(self, text: TextEmbedding, image_tokens: Tensor, prefix_latents: Tensor, seed: int) -> Tensor:
        """Generates one window for each clip.

        Args:
            text: embedded captions, batch size B.
            image_tokens: tokens of the first frame, [B, Li, D].
            prefix_latents: known latent frames [B, C, k, h, w], 1 <= k < T.
            seed: seed of all noise.

        Returns:
            Latents [B, C, T, h, w]; the first k are the network's own reconstruction of the known ones.
        """
        predict = self._predictor(text, image_tokens, self._prefix(prefix_latents))
        return self._integrate(predict, prefix_latents, self.latent_frames, seed)

    def fuse(
        self,
        text: TextEmbedding,
        image_tokens: Tensor,
        first_latent: Tensor,
        num_windows: int,
        num_carried: int,
        seed: int,
    ) -> Tensor:
        """Generates a long video in one loop over all windows (see `diffusion.fused_windows`).

        Arguments and result as for `chain`, but `seed` is the seed of all noise.
        """

        def predict_window(x_t: Tensor, sigma: Tensor, known: Tensor) -> Tensor:
            return self._predictor(text, image_tokens, self._prefix(known))(x_t, sigma)

        field = fuse_windows(predict_window, first_latent, num_windows, self.latent_frames, num_carried)
        num_frames = video_latent_frames(num_windows, self.latent_frames, num_carried)
        return self._integrate(field, first_latent, num_frames, seed)

    def chain(
        self,
        text: TextEmbedding,
        image_tokens: Tensor,
        first_latent: Tensor,
        num_windows: int,
        num_carried: int,
        seed: int,
        on_window: Callable[[], None] | None = None,
    ) -> Tensor:
        """Generates a long video window by window (see `diffusion.long_video`); image tokens stay those of frame 0.

        Args:
            text: embedded captions, batch size B.
            image_tokens: tokens of the very first frame, [B, Li, D].
            first_latent: [B, C, 1, h, w], known to every window.
            num_windows: number of windows.
            num_carried: latent frames carried from each window to the next, besides the first.
            seed: seed of the first window; later windows add their index.
            on_window: called after each window.

        Returns:
            Latents [B, C, T + (num_windows-1)*(T-1-num_carried), h, w].
        """

        def sample_window(prefix: Tensor, index: int) -> Tensor:
            latents = self.sample(text, image_tokens, prefix, seed + index)
            if on_window is not None:
                on_window()
            return latents

        return chain_windows(sample_window, first_latent, num_windows, num_carried)

    def _prefix(self, known: Tensor) -> Prefix:
        """The prefix of a window that starts with the known latent frames [B, C, k, h, w]."""
        unknown = known.new_zeros(*known.shape[:2], self.latent_frames - known.shape[2], *known.shape[3:])
        return make_prefix(torch.cat([known, unknown], dim=2), known.shape[2])

    @torch.no_grad()
    def _integrate(self, predict: PredictVelocity, known: Tensor, num_frames: int, seed: int) -> Tensor:
        """Samples `num_frames` latent frames from noise, with the size, dtype and device of the known ones."""
        rng = torch.Generator().manual_seed(seed)
        shape = (*known.shape[:2], num_frames, *known.shape[3:])
        noise = torch.randn(shape, generator=rng).to(known)
        sigmas = sigma_grid(self.settings.num_steps, self.settings.shift)
        return sample(predict, noise, sigmas, self.settings.sampler, rng)

    def _predictor(self, text: TextEmbedding, image_tokens: Tensor, prefix: Prefix) -> PredictVelocity:
        # text and empty prompt follow the image tokens; on a GPU `to` also drops the padding where it can
        device = image_tokens.device
        cond = condition(text, image_tokens).to(device)
        uncond = condition(self.null_text.expand(len(image_tokens)), image_tokens).to(device)
        w = torch.full((len(image_tokens),), self.settings.guidance_scale)

        def predict(x_t: Tensor, sigma: Tensor) -> Tensor:
            with self._autocast(x_t.device):
                if self.settings.guidance == "two_evaluations":
                    conditional = velocity(self.model, x_t, sigma, cond, prefix)
                    return guided_velocity(velocity(self.model, x_t, sigma, uncond, prefix), conditional, w.to(x_t))
                return velocity(self.model, x_t, sigma, cond, prefix, w.to(x_t.device))

        return predict

    def _autocast(self, device: torch.device) -> torch.autocast:
        """Matrix products in bfloat16 on a GPU or if the weights are; latents and times stay float32."""
        half = device.type == "cuda" or next(self.model.parameters()).dtype == torch.bfloat16
        return torch.autocast(device.type, torch.bfloat16, enabled=half)
