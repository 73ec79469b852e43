"""Fused windows: one window is the plain sampler, averages are exact, frames go on from window to window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magic141.diffusion.flow import sigma_grid
from magic141.diffusion.fused_windows import fuse_windows
from magic141.diffusion.long_video import video_latent_frames
from magic141.diffusion.samplers import sample
from magic141.models.config import Sampler

WINDOW = 5
CASES = [(1, 1), (2, 1), (2, 2), (12, 2), (5, 3)]


def counting(x_t: Tensor, sigma: Tensor, known: Tensor) -> Tensor:
    """The velocity towards a window that continues a count from its last known frame."""
    fresh = known[:, :, -1:] + torch.arange(1, WINDOW - known.shape[2] + 1).reshape(1, 1, -1, 1, 1)
    return (x_t - torch.cat([known, fresh], dim=2)) / sigma.reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize(("num_windows", "carried"), CASES)
def test_averaging_is_exact_for_a_field_that_windows_agree_on(num_windows: int, carried: int) -> None:
    field = fuse_windows(lambda x, sigma, known: 2 * x + 1, torch.zeros(2, 3, 1, 4, 4), num_windows, WINDOW, carried)
    x_t = torch.randn(2, 3, video_latent_frames(num_windows, WINDOW, carried), 4, 4)
    torch.testing.assert_close(field(x_t, torch.full((2,), 0.5)), 2 * x_t + 1)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
@pytest.mark.parametrize(("num_windows", "carried"), CASES)
def test_every_frame_appears_once_and_in_order(num_windows: int, carried: int, sampler: Sampler) -> None:
    field = fuse_windows(counting, torch.zeros(2, 1, 1, 1, 1), num_windows, WINDOW, carried)
    noise, grid = torch.randn(2, 1, video_latent_frames(num_windows, WINDOW, carried), 1, 1), sigma_grid(4, shift=5.0)
    generator = torch.Generator().manual_seed(0)
    video = sample(field, noise, grid, sampler, generator)
    torch.testing.assert_close(video[0, 0, :, 0, 0], torch.arange(noise.shape[2]).float(), atol=1e-3, rtol=1e-3)


def test_one_window_is_the_window_itself() -> None:
    x_t, sigma, first = torch.randn(2, 3, WINDOW, 4, 4), torch.tensor([0.3, 0.9]), torch.randn(2, 3, 1, 4, 4)
    seen: list[Tensor] = []

    def network(x: Tensor, sigma: Tensor, known: Tensor) -> Tensor:
        seen.append(known)
        return x.square() + sigma.reshape(-1, 1, 1, 1, 1)

    assert torch.equal(fuse_windows(network, first, 1, WINDOW, 2)(x_t, sigma), network(x_t, sigma, first))
    assert torch.equal(seen[0], first)


def test_windows_are_averaged_where_they_overlap() -> None:
    """Each window answers with its number: frames of two windows get the mean."""
    numbers = iter(range(3))
    field = fuse_windows(
        lambda x, sigma, known: torch.full_like(x, float(next(numbers))), torch.zeros(1, 1, 1, 1, 1), 3, WINDOW, 2
    )
    velocity = field(torch.zeros(1, 1, video_latent_frames(3, WINDOW, 2), 1, 1), torch.ones(1))
    assert velocity.flatten().tolist() == [1, 0, 0, 0.5, 0.5, 1.5, 1.5, 2, 2]
