"""The share of the modes is known for students that keep all of them, none, or one of two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magic141.training.dmd2.mode_coverage import mode_coverage

NUM_CONDITIONS = 200


def clips(seed: int, num_seeds: int, size: int = 4) -> Tensor:
    """Clips that differ only in their seed, [S, N, C, T, h, w]."""
    shape = (num_seeds, NUM_CONDITIONS, 2, 3, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_modes(seed: int, modes: list[float]) -> Tensor:
    """A seed in each of the modes, which lie far apart; the conditions lie closer to each other than the modes."""
    conditions = 5 * clips(-1, 1)
    return conditions + 20 * torch.tensor(modes).reshape(-1, 1, 1, 1, 1, 1) + clips(seed, len(modes))


@pytest.mark.parametrize("num_seeds", [2, 4])
def test_the_reference_is_covered_and_what_is_far_away_is_not(num_seeds: int) -> None:
    reference = clips(0, num_seeds)
    assert mode_coverage(reference.clone(), reference) == 1
    assert mode_coverage(reference.flip(0), reference) == 1
    assert mode_coverage(reference[:1], reference[:1].expand_as(reference)) == 1, "seeds that do not differ"
    assert mode_coverage(reference + 100, reference) == 0
    assert mode_coverage(torch.full_like(reference, torch.nan), reference) == 0


@pytest.mark.parametrize(("num_seeds", "expected"), [(2, 2 / 3), (4, 4 / 7)])
def test_other_draws_from_the_same_distribution_have_the_expected_coverage(num_seeds: int, expected: float) -> None:
    covered = mode_coverage(clips(1, num_seeds), clips(0, num_seeds))
    assert covered == pytest.approx(expected, abs=0.06)


def test_a_student_that_keeps_to_one_of_two_modes_covers_half() -> None:
    reference = in_modes(0, [-1, -1, 1, 1])
    assert mode_coverage(reference[[0, 1, 0, 1]], reference) == 0.5


@pytest.mark.parametrize(("modes", "expected"), [([-1, -1, 1, 1], 2 / 3), ([-1, -1, -1, -1], 4 / 5 / 2)])
def test_other_draws_from_the_modes_cover_those_that_they_are_in(modes: list[float], expected: float) -> None:
    """The nearest of the other clips in a mode is the student's as often as its share of them."""
    covered = mode_coverage(in_modes(1, modes), in_modes(0, [-1, -1, 1, 1]))
    assert covered == pytest.approx(expected, abs=0.06)


def test_parts_of_the_conditions_have_the_coverage_of_all_as_their_mean() -> None:
    student, reference = clips(1, 2), clips(0, 2)
    half = NUM_CONDITIONS // 2
    parts = [mode_coverage(student[:, part], reference[:, part]) for part in (slice(half), slice(half, None))]
    assert sum(parts) / 2 == pytest.approx(mode_coverage(student, reference))


def test_grain_on_large_clips_costs_no_mode() -> None:
    reference = clips(0, 2, size=4).repeat_interleave(8, -1).repeat_interleave(8, -2)
    signs = torch.tensor([1.0, -1.0]).repeat(16)
    for grain in (signs, signs[:, None], signs[:, None] * signs):
        assert mode_coverage(reference + 4 * grain, reference) == 1
