"""Peaks that can be counted by hand: a tensor here has 1 MiB."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from magic141.evaluation.generation.tensor_memory import TensorMemory

ONE_MIB = (512, 512)


def test_a_chain_holds_two_at_a_time() -> None:
    x = torch.ones(ONE_MIB)
    with TensorMemory() as memory:
        for _ in range(5):
            x = x + 1
    assert memory.peak_mb == 2, "the one that is made and the one that it is made of; the first was there before"


def test_what_is_kept_adds_up_and_what_was_freed_before_the_end_counts() -> None:
    with TensorMemory() as memory:
        kept = [torch.ones(ONE_MIB) for _ in range(3)]
        del kept
        torch.ones(ONE_MIB)
    assert memory.peak_mb == 3


def test_views_and_changes_in_place_take_nothing() -> None:
    with TensorMemory() as memory:
        x = torch.ones(ONE_MIB)
        parts = [x.T, x.reshape(-1)[10:], *x.chunk(4)]
        x.add_(1).relu_()
    assert memory.peak_mb == 1
    assert len(parts) == 6


def test_a_view_keeps_the_whole() -> None:
    def row() -> Tensor:
        return torch.ones(ONE_MIB)[0]

    with TensorMemory() as memory:
        rows = [row(), row()]
    assert memory.peak_mb == len(rows)


def test_of_a_network_only_the_activations_count() -> None:
    network = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    x = torch.ones(ONE_MIB)
    with torch.no_grad(), TensorMemory() as memory:
        network(x)
    assert memory.peak_mb == 2
