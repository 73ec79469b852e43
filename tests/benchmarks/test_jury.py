"""Fresh clips: what is said of them beside the pipeline's own scores."""

from __future__ import annotations

import numpy as np
import pytest

from magic141.data.config import ShapesConfig
from magic141.data.shapes import sample_clip
from tests.benchmarks.test_tables import script


def test_skews_that_cancel_out_in_the_mean_of_the_axes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truths = [sample_clip(rng, ShapesConfig(exact_fraction=0.0)).to_dict() for _ in range(400)]
    axes = np.array([truth["direction"] % 4 for truth in truths])
    skew = script("jury", monkeypatch).skew
    one_way_each = (axes < 2).astype(float)
    assert one_way_each.mean() == pytest.approx(0.5, abs=0.1)
    assert skew(one_way_each, truths) == 0.5
    assert skew(rng.integers(0, 2, 400).astype(float), truths) < 0.15
    one_way_each[::2] = np.nan
    assert skew(one_way_each, truths) == 0.5
