"""Every way of collapsing shows in its own figure; a collapsed run stops and says what to try."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magic141.errors import UserError
from magic141.frozen import key_fields
from magic141.training.config import WATCH_FILE
from magic141.training.dmd2.collapse import CollapseWatch, compare, symptoms
from magic141.training.dmd2.config import CollapseConfig

HEALTHY = {
    "validation_frechet": 2.0,
    "validation_variance_ratio": 1.0,
    "validation_motion_ratio": 1.0,
    "validation_detail_ratio": 1.0,
    "validation_diversity_ratio": 1.0,
    "validation_mode_coverage": 1.0,
    "validation_mean_drift": 0.0,
    "validation_saturation": 0.0,
    "fake_loss": 0.2,
    "dmd_gradient": 1.5,
}


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


def judge(watch: CollapseWatch, step: int, **changes: float) -> None:
    watch.judge(step, HEALTHY | {f"validation_{name}": value for name, value in changes.items()}, {"step": step})


def test_two_bad_validations_in_a_row_stop_the_run_with_a_remedy() -> None:
    watch = CollapseWatch(CollapseConfig())
    judge(watch, 50)
    judge(watch, 100, variance_ratio=0.3)
    judge(watch, 150)  # recovered
    judge(watch, 200, variance_ratio=0.3)
    with pytest.raises(UserError, match=r"step 250, after 2 .*: variance 0.20 x .*at least 0.5.*score_shift.*step 50"):
        judge(watch, 250, variance_ratio=0.2, frechet=1.0)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("fake_loss", 1.0, r"fake loss 5.0 x its first value .*fake_updates_per_step"),
        ("dmd_gradient", 7.5, r"gradient 5.0 x its first value .*fake_updates_per_step"),
        ("validation_frechet", 5.0, r"Fréchet distance 2.5 x its smallest value .*optimizer.learning_rate"),
        (
            "validation_mode_coverage",
            0.05,
            r"5% of the many-step model's clips have .* near \(at least 10%\).*a_weak",
        ),
        ("validation_frechet_ratio", 11.0, r"Fréchet distance 11.00 x that of the many-step model \(at most 10"),
        ("validation_variance_ratio", 2.5, r"variance 2.50 x that .*at most 2.*learning_rate"),
        ("validation_motion_ratio", 0.3, r"motion 0.30 x that .*at least 0.4.*score_shift"),
        ("validation_detail_ratio", 0.3, r"difference between neighbours 0.30 x that .*at least 0.4.*score_shift"),
        ("validation_detail_ratio", 3.0, r"difference between neighbours 3.00 x that .*at most 2.5.*learning_rate"),
        ("validation_diversity_ratio", 0.1, r"difference between seeds 0.10 x that .*at least 0.2.*score_shift"),
        ("validation_mean_drift", 1.5, r"mean off by 1.50 standard deviations \(at most 1"),
        ("validation_saturation", 0.2, r"20% of the values saturated \(at most 10%"),
    ],
)
def test_what_is_beyond_its_bound_is_a_symptom(name: str, value: float, says: str) -> None:
    watch = CollapseWatch(CollapseConfig(patience=1))
    watch.judge(50, HEALTHY, {})
    with pytest.raises(UserError, match=says):
        watch.judge(100, HEALTHY | {name: value}, {})


def test_the_distance_is_compared_with_its_smallest_value_and_not_with_its_first() -> None:
    watch = CollapseWatch(CollapseConfig(stop=False))
    for step, frechet in ((50, 9.0), (100, 2.0), (150, 3.9), (200, 4.1), (250, 8.0)):
        judge(watch, step, frechet=frechet)
    assert [row["num_symptoms"] for row in watch.history] == [0, 0, 0, 1, 1]
    assert watch.collapsed


def test_the_best_state_is_the_healthy_one_with_the_smallest_distance(tmp_path: Path) -> None:
    watch = CollapseWatch(CollapseConfig(stop=False, patience=1))
    judge(watch, 50, frechet=3.0)
    judge(watch, 100, frechet=2.5)
    judge(watch, 150, frechet=0.1, motion_ratio=0.0)
    assert (watch.best_step, watch.best) == (100, {"step": 100})
    assert watch.collapsed
    watch.write(tmp_path, exported_step=100)
    written: Mapping[str, object] = json.loads((tmp_path / WATCH_FILE).read_text())
    assert (written["best_step"], written["collapsed"]) == (100, True)
    assert [row["step"] for row in watch.history] == [50, 100, 150]


def test_the_kept_state_is_a_copy_and_survives_a_checkpoint() -> None:
    watch, weights = CollapseWatch(CollapseConfig()), torch.ones(2)
    watch.judge(50, HEALTHY, {"ema": {"weights": weights}})
    weights.zero_()
    resumed = CollapseWatch(CollapseConfig())
    resumed.load_state_dict(watch.state_dict())
    assert resumed.best is not None
    assert torch.equal(resumed.best["ema"]["weights"], torch.ones(2))
    assert resumed.history == watch.history


def test_a_run_that_the_watch_has_stopped_can_go_on() -> None:
    """What stops it is no part of the stage's key, so that its checkpoints are those of the same work."""
    stopped, going_on = (key_fields(CollapseConfig(stop=stop)) for stop in (True, False))
    assert stopped == going_on
    assert "max_mean_drift" in stopped
