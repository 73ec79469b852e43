"""A score is the mean of the clips that have one, with the error of that mean."""

from __future__ import annotations

import math

import pytest

from magic141.evaluation.scores import Score, error_text


def test_the_error_is_that_of_the_mean_over_the_clips_that_have_the_score() -> None:
    score = Score.mean([1.0, math.nan, 3.0, 2.0])
    assert score.value == 2.0
    assert score.stderr == pytest.approx(1 / math.sqrt(3)), "their spread is 1, the unbiased one, and there are three"


def test_one_clip_has_no_error_and_none_has_no_score() -> None:
    assert Score.mean([math.nan, 0.5]) == Score(0.5)
    assert Score.mean([math.nan, math.inf]) == Score.missing("no clip has this score")


@pytest.mark.parametrize(("error", "text"), [(0.0126, "±.013"), (1.26, "±1.260"), (0.0004, ""), (None, "")])
def test_an_error_that_rounds_to_nothing_is_not_shown(error: float | None, text: str) -> None:
    assert error_text(error, 3) == text
