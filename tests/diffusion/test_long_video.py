"""Frames of a chained video are neither lost nor doubled."""

from __future__ import annotations

import pytest
import torch

from magic141.diffusion.long_video import chain_windows, num_windows_for


def count_on(known: torch.Tensor, length: int) -> torch.Tensor:
    """A 'network' that continues a count: known frames as they are, then one more each frame."""
    start = known[:, :, :1]
    return start + torch.arange(length).reshape(1, 1, -1, 1, 1)


@pytest.mark.parametrize(("num_windows", "prefix"), [(1, 1), (2, 1), (2, 2), (12, 2), (5, 4)])
def test_every_frame_appears_once_and_in_order(num_windows: int, prefix: int) -> None:
    first = torch.zeros(2, 3, 1, 1, 1)
    video = chain_windows(lambda known, _: count_on(known, 5), first, num_windows, prefix)
    frames = 5 + (num_windows - 1) * (5 - prefix)
    assert torch.equal(video[0, 0, :, 0, 0], torch.arange(frames).float())


def test_each_window_knows_the_last_frames_of_the_one_before() -> None:
    seen: list[torch.Tensor] = []

    def sample(known: torch.Tensor, index: int) -> torch.Tensor:
        seen.append(known)
        return count_on(known, 5)

    chain_windows(sample, torch.zeros(1, 1, 1, 1, 1), 3, 2)
    assert [known.flatten().tolist() for known in seen] == [[0.0], [3.0, 4.0], [6.0, 7.0]]


@pytest.mark.parametrize("length", range(1, 40))
def test_fewest_windows_that_cover_a_length(length: int) -> None:
    num = num_windows_for(length, window_latent_frames=5, prefix_frames=2)
    assert 5 + (num - 1) * 3 >= length
    assert num == 1 or 5 + (num - 2) * 3 < length
