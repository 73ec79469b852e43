"""A collapsed run stops and says what to try; the best state is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from magic141.errors import UserError
from magic141.frozen import key_fields
from magic141.training.config import WATCH_FILE
from magic141.training.dmd2.collapse import CollapseWatch
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


def watching(config: CollapseConfig | None = None, num_steps: int = 1000) -> CollapseWatch:
    return CollapseWatch(config or CollapseConfig(), num_steps)


def judge(watch: CollapseWatch, step: int, **changes: float) -> None:
    watch.judge(step, HEALTHY | {f"validation_{name}": value for name, value in changes.items()}, {"step": step})
    watch.require_sound()


def test_two_bad_validations_in_a_row_stop_the_run_with_a_remedy() -> None:
    watch = watching()
    judge(watch, 50)
    judge(watch, 100, variance_ratio=0.3)
    judge(watch, 150)  # recovered
    judge(watch, 200, variance_ratio=0.3)
    assert watch.message == ""
    with pytest.raises(UserError, match=r"step 250, after 2 .*: variance 0.20 x .*at least 0.5.*score_shift.*step 50"):
        judge(watch, 250, variance_ratio=0.2, frechet=1.0)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("dmd_gradient", 7.5, r"gradient 5.0 x its first value .*fake_updates_per_step"),
        ("validation_frechet", 5.0, r"Fréchet distance 2.5 x its smallest value .*optimizer.learning_rate"),
        (
            "validation_mode_coverage",
            0.05,
            r"5% of the many-step model's clips near .* \(at least 10%\).*a_weak",
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
    watch = watching(CollapseConfig(patience=1))
    watch.judge(50, HEALTHY, {})
    watch.judge(100, HEALTHY | {name: value}, {})
    with pytest.raises(UserError, match=says):
        watch.require_sound()


def test_what_is_at_its_bound_is_healthy() -> None:
    bounds = {"variance_ratio": 0.5, "motion_ratio": 0.4, "detail_ratio": 2.5, "mean_drift": 1.0, "saturation": 0.1}
    watch = watching(CollapseConfig(patience=1))
    judge(watch, 50, **bounds)
    judge(watch, 100, **bounds, frechet=2 * HEALTHY["validation_frechet"])


def test_a_fake_loss_that_grows_explains_a_collapse_but_is_none() -> None:
    """It also grows on the way to health, when clips that hardly moved begin to."""
    watch = watching(CollapseConfig(patience=1))
    watch.judge(50, HEALTHY, {})
    watch.judge(100, HEALTHY | {"fake_loss": 1.0}, {})
    watch.require_sound()
    watch.judge(150, HEALTHY | {"fake_loss": 1.0, "validation_saturation": 0.2}, {})
    with pytest.raises(UserError, match=r"20% of the values saturated.*fake loss 5.0 x its first.*fake_updates_per"):
        watch.require_sound()


def test_a_validation_without_training_figures_is_judged_by_its_own() -> None:
    watch = watching(CollapseConfig(patience=1))
    watch.judge(50, HEALTHY, {})
    own = {name: value for name, value in HEALTHY.items() if name.startswith("validation_")}
    watch.judge(100, own, {})
    watch.require_sound()
    watch.judge(150, own | {"validation_saturation": 0.2}, {})
    with pytest.raises(UserError, match=r"20% of the values saturated"):
        watch.require_sound()


def test_a_gradient_that_was_zero_at_first_has_no_growth() -> None:
    """As where the scores overflowed: what is not finite counts as zero."""
    watch = watching(CollapseConfig(patience=1))
    watch.judge(50, HEALTHY | {"dmd_gradient": 0.0}, {})
    watch.judge(100, HEALTHY, {})
    assert not watch.collapsed


def test_a_student_that_begins_still_may_rise_but_not_fall() -> None:
    start = HEALTHY | {"validation_motion_ratio": 0.1, "validation_mode_coverage": 0.02, "validation_frechet_ratio": 20}
    rising, falling = (watching(CollapseConfig(patience=1), num_steps=400) for _ in range(2))
    rising.start = falling.start = start
    for step, motion in ((50, 0.11), (100, 0.2), (150, 0.19), (200, 0.35)):
        judge(rising, step, motion_ratio=motion, mode_coverage=0.03, frechet_ratio=15)
    with pytest.raises(UserError, match=r"motion 0\.35 x"):  # the time to rise is over
        judge(rising, 250, motion_ratio=0.35)
    judge(falling, 50, motion_ratio=0.3)
    with pytest.raises(UserError, match=r"motion 0\.20 x"):
        judge(falling, 100, motion_ratio=0.2)


def test_a_distance_that_begins_too_large_may_fall_but_not_rise_again() -> None:
    watch = watching(CollapseConfig(patience=1))
    watch.start = HEALTHY | {"validation_frechet_ratio": 20}
    for step, ratio in ((50, 15), (100, 12), (150, 13)):
        judge(watch, step, frechet_ratio=ratio)
    with pytest.raises(UserError, match=r"Fréchet distance 14\.00 x"):
        judge(watch, 200, frechet_ratio=14)


def test_one_seed_has_no_diversity_to_be_compared_with_the_beginnings() -> None:
    watch = watching(CollapseConfig(num_seeds=1, patience=1))
    one_seed = {name: value for name, value in HEALTHY.items() if "diversity" not in name and "coverage" not in name}
    watch.start = one_seed
    watch.judge(50, one_seed, {})
    assert not watch.collapsed


def test_a_student_whose_beginning_is_not_known_may_not_begin_still() -> None:
    watch = watching()
    judge(watch, 50, motion_ratio=0.1)
    with pytest.raises(UserError, match=r"motion 0\.20 x"):
        judge(watch, 100, motion_ratio=0.2)


def test_the_distance_is_compared_with_its_smallest_value_and_not_with_its_first() -> None:
    watch = watching(CollapseConfig(stop=False))
    for step, frechet in ((50, 9.0), (100, 2.0), (150, 3.9), (200, 4.1), (250, 8.0)):
        judge(watch, step, frechet=frechet)
    assert [row["num_symptoms"] for row in watch.history] == [0, 0, 0, 1, 1]
    assert watch.collapsed


def test_the_best_state_is_the_healthy_one_with_the_smallest_distance(tmp_path: Path) -> None:
    watch = watching(CollapseConfig(stop=False, patience=1))
    judge(watch, 50, frechet=3.0)
    judge(watch, 100, frechet=2.5)
    judge(watch, 150, frechet=0.1, motion_ratio=0.0)
    assert (watch.best_step, watch.best) == (100, {"step": 100})
    assert watch.collapsed
    watch.write(tmp_path, exported_step=100)
    written: Mapping[str, object] = json.loads((tmp_path / WATCH_FILE).read_text())
    assert (written["best_step"], written["collapsed"]) == (100, True)
    assert [row["step"] for row in watch.history] == [50, 100, 150]
    assert "validation_frechet" in watch.history[0]
    assert "fake_loss" not in watch.history[0], "of training, not of the validation"


def test_the_kept_state_is_a_copy_and_survives_a_checkpoint() -> None:
    watch, weights = watching(), torch.ones(2)
    watch.judge(50, HEALTHY, {"ema": {"weights": weights}})
    weights.zero_()
    resumed = watching()
    resumed.load_state_dict(watch.state_dict())
    assert resumed.best is not None
    assert torch.equal(resumed.best["ema"]["weights"], torch.ones(2))
    assert resumed.history == watch.history


def test_a_run_that_the_watch_has_stopped_can_go_on() -> None:
    """What stops it is no part of the stage's key, so that its checkpoints are those of the same work."""
    stopped, going_on = (key_fields(CollapseConfig(stop=stop)) for stop in (True, False))
    assert stopped == going_on
    assert "max_mean_drift" in stopped
    watch, resumed = watching(CollapseConfig(patience=1)), watching(CollapseConfig(patience=1, stop=False))
    watch.judge(50, HEALTHY | {"validation_saturation": 0.2}, {})
    resumed.load_state_dict(watch.state_dict())
    assert resumed.collapsed
    resumed.require_sound()
