"""Frames of a chained video are neither lost nor doubled, and every window sees the anchor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magic141.diffusion.long_video import chain_windows, num_windows_for, video_latent_frames


def count_on(known: Tensor, length: int) -> Tensor:
    """A 'network' that continues a count: known frames as they are, then one more each frame."""
    fresh = known[:, :, -1:] + torch.arange(1, length - known.shape[2] + 1).reshape(1, 1, -1, 1, 1)
    return torch.cat([known, fresh], dim=2)


@pytest.mark.parametrize(("num_windows", "carried"), [(1, 1), (2, 1), (2, 2), (12, 2), (5, 3)])
def test_every_frame_appears_once_and_in_order(num_windows: int, carried: int) -> None:
    first = torch.zeros(2, 3, 1, 1, 1)
    video = chain_windows(lambda known, _: count_on(known, 5), first, num_windows, carried)
    frames = 5 + (num_windows - 1) * (4 - carried)
    assert frames == video_latent_frames(num_windows, 5, carried)
    assert torch.equal(video[0, 0, :, 0, 0], torch.arange(frames).float())


def test_each_window_knows_the_first_frame_and_the_last_ones_of_the_one_before() -> None:
    seen: dict[int, list[float]] = {}

    def sample(known: Tensor, index: int) -> Tensor:
        seen[index] = known.flatten().tolist()
        return count_on(known, 5)

    chain_windows(sample, torch.zeros(1, 1, 1, 1, 1), 3, 2)
    assert seen == {0: [0.0], 1: [0.0, 3.0, 4.0], 2: [0.0, 5.0, 6.0]}


def test_an_error_of_one_window_does_not_reach_the_anchor() -> None:
    """A network that adds an offset to what it carries, but keeps to the anchor where it can, does not drift."""

    def sample(known: Tensor, index: int) -> Tensor:
        return (known[:, :, :1] + 0.1 * (known[:, :, -1:] - known[:, :, :1]) + 1).expand(-1, -1, 5, -1, -1)

    video = chain_windows(sample, torch.zeros(1, 1, 1, 1, 1), 20, 1)
    assert float(video.max()) < 1.2


@pytest.mark.parametrize("length", range(1, 40))
@pytest.mark.parametrize("carried", [1, 2, 3])
def test_fewest_windows_that_cover_a_length(length: int, carried: int) -> None:
    fresh = 4 - carried
    num = num_windows_for(length, window_latent_frames=5, num_carried=carried)
    assert 5 + (num - 1) * fresh >= length
    assert num == 1 or 5 + (num - 2) * fresh < length
