"""Every way of collapsing shows in its own figure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from magic141.training.dmd2.clip_metrics import compare
from magic141.training.dmd2.collapse import symptoms
from magic141.training.dmd2.config import CollapseConfig


def clips(seed: int, num: int = 16) -> Tensor:
    """Two seeds of clips [2, N, C, T, h, w]."""
    return torch.randn(2, num, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def figures(student: Tensor) -> dict[str, float]:
    compared = compare(student, clips(0))
    return {name.removeprefix("validation_"): value for name, value in compared.items()}


class Pools:
    """Means over workers that are threads of this process."""

    def __init__(self, num_workers: int) -> None:
        self._barrier, self._values = threading.Barrier(num_workers), [torch.zeros(())] * num_workers
        self._number = threading.local()

    def mean(self, own: Tensor) -> Tensor:
        self._values[self._number.value] = own
        self._barrier.wait()
        mean = torch.stack(self._values).mean(0)
        self._barrier.wait()
        return mean

    def run(self, work: Callable[[int], dict[str, float]]) -> dict[str, float]:
        def numbered(number: int) -> dict[str, float]:
            self._number.value = number
            return work(number)

        with ThreadPoolExecutor(len(self._values)) as pool:
            return next(iter(pool.map(numbered, range(len(self._values)))))


def test_a_student_like_the_reference_has_ratios_and_coverage_of_one() -> None:
    seen = figures(clips(0))
    for name in ("variance_ratio", "motion_ratio", "detail_ratio", "diversity_ratio", "mode_coverage"):
        assert seen[name] == pytest.approx(1.0, abs=1e-5), name
    assert seen["mean_drift"] == pytest.approx(0.0, abs=1e-5)
    assert seen["saturation"] == 0


@pytest.mark.parametrize(
    ("collapsed", "figure", "value"),
    [
        (lambda x: 0.5 * x, "variance_ratio", 0.25),
        (lambda x: x[:, :, :, :1].expand_as(x), "motion_ratio", 0.0),
        (lambda x: x[:1].expand_as(x), "diversity_ratio", 0.0),
        (lambda x: x[:1].expand_as(x), "mode_coverage", 0.5),
        (lambda x: x + 4, "mode_coverage", 0.0),
        (lambda x: x + 2, "mean_drift", 2.0),
        (lambda x: torch.where(torch.arange(4) < 2, x, 100.0), "saturation", 0.5),
    ],
)
def test_each_kind_of_collapse_shows(collapsed: Callable[[Tensor], Tensor], figure: str, value: float) -> None:
    assert figures(collapsed(clips(0)))[figure] == pytest.approx(value, abs=0.03)


@pytest.mark.parametrize(
    "collapsed",
    [lambda x: 0.5 * x, lambda x: x + 2, lambda x: torch.where(torch.arange(4) < 2, x, 100.0), lambda x: 0.9 * x],
    ids=["fading", "drifting", "saturated", "healthy"],
)
def test_figures_do_not_depend_on_the_unit_and_the_zero_of_the_latents(collapsed: Callable[[Tensor], Tensor]) -> None:
    def in_other_units(x: Tensor) -> Tensor:
        return 0.25 * x + 3

    student, reference = collapsed(clips(0)).double(), clips(0).double()
    seen = compare(in_other_units(student), in_other_units(reference))
    assert seen == pytest.approx(compare(student, reference), rel=1e-4)


def test_shapes_in_pieces_show_in_the_detail_alone() -> None:
    """Places that are swapped, the same in all frames and clips, change no sum over places."""
    ramp = torch.linspace(-1, 1, 8)
    smooth = clips(0)[..., :1, :1] * 0.1 + ramp + ramp[:, None]
    swapped = smooth[..., torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])]
    seen = compare(swapped, smooth)
    assert seen.pop("validation_detail_ratio") > 2.5
    healthy = compare(smooth, smooth)
    assert {name: value for name, value in seen.items() if value != pytest.approx(healthy[name], abs=1e-5)} == {}


def test_workers_clips_are_judged_together() -> None:
    """The many-step model's clips hardly move, but for one worker's, and the student's not at all."""
    reference = clips(0, num=8)[:, :, :, :1] + 0.02 * clips(1, num=8)
    reference[:, 7:] += clips(2, num=1)
    student = reference[:, :, :, :1] + 0.01 * clips(3, num=8)
    together = compare(student, reference)
    pools = Pools(8)
    apart = pools.run(lambda n: compare(student[:, n : n + 1], reference[:, n : n + 1], pools.mean))
    for name, value in together.items():
        assert apart[name] == pytest.approx(value, rel=1e-6), name
    assert together["validation_motion_ratio"] < 0.01


@pytest.mark.parametrize(
    ("left", "missing"),
    [
        (lambda x: x[:1], {"validation_diversity_ratio", "validation_mode_coverage"}),
        (lambda x: x[:, :, :, :1], {"validation_motion_ratio"}),
    ],
)
def test_one_seed_or_one_frame_has_fewer_figures_and_is_no_collapse(
    left: Callable[[Tensor], Tensor], missing: set[str]
) -> None:
    seen, all_names = compare(left(clips(0)), left(clips(0))), compare(clips(0), clips(0)).keys()
    assert all_names - seen.keys() == missing
    assert not list(symptoms(seen, {}, CollapseConfig()))
