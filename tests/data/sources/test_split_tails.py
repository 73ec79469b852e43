from __future__ import annotations

import numpy as np
import pytest

from magic141.data.sources.split_tails import label_tails
from magic141.data.sources.splits import SPLITS


def share(labels: list[list[str | None]], name: str) -> float:
    return sum(video.count(name) for video in labels) / sum(len(video) for video in labels)


@pytest.mark.parametrize("counts", [[100], [4, 8, 1, 12, 16, 13], [1] * 50, [4] * 30, [30] * 5])
def test_no_frame_is_in_two_splits(counts: list[int]) -> None:
    labels, notes = label_tails(counts, fraction=0.15, gap=3)
    assert [len(video) for video in labels] == counts
    assert not notes
    for video in labels:
        for index, label in enumerate(video):
            near = {other for other in video[max(0, index - 3) : index + 4] if other is not None}
            assert label is None or near == {label}


@pytest.mark.parametrize("counts", [[1] * 200, [4] * 100, [40] * 10, [500]])
def test_shares_are_near_the_fraction(counts: list[int]) -> None:
    labels = label_tails(counts, fraction=0.15, gap=3)[0]
    for name in ("validation", "heldout"):
        assert 0.1 < share(labels, name) < 0.2
    assert share(labels, "train") > 0.5


@pytest.mark.parametrize("counts", [[1] * 4000, [4] * 1000, [40] * 100, [4000]])
def test_a_limit_is_kept_and_spread_over_the_videos(counts: list[int]) -> None:
    labels = label_tails(counts, fraction=0.15, gap=3, max_windows=20)[0]
    for name in ("validation", "heldout"):
        assert 16 <= sum(video.count(name) for video in labels) <= 20
        if len(labels) > 1:
            assert any(name in video for video in labels[: len(labels) // 2])
            assert any(name in video for video in labels[len(labels) // 2 :])
    assert share(labels, "train") > 0.9
    assert label_tails(counts, 0.15, 3, max_windows=1000) == label_tails(counts, 0.15, 3)
    assert label_tails([], 0.15, 3, max_windows=20) == ([], [])


def test_every_split_gets_a_window_and_training_most() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = [int(count) for count in rng.integers(1, 9, rng.integers(1, 7))]
        labels = label_tails(counts, fraction=0.15, gap=int(rng.integers(0, 5)))[0]
        if sum(counts) >= 3:
            assert all(share(labels, name) > 0 for name in SPLITS), counts


def test_a_split_that_would_be_empty_gets_one_window_behind_a_whole_gap() -> None:
    (labels,), notes = label_tails([40], fraction=0.02, gap=3)
    assert labels == [*["train"] * 32, None, None, None, "validation", None, None, None, "heldout"]
    assert not notes


def test_a_gap_shrinks_no_more_than_it_has_to() -> None:
    (labels,), notes = label_tails([12], fraction=0.15, gap=3)
    assert labels == [*["train"] * 5, None, None, "validation", None, None, None, "heldout"]
    assert [note.partition("(")[2] for note in notes] == ["gap of 2 instead of 3 windows)"]


def test_a_smaller_gap_is_noted() -> None:
    labels, notes = label_tails([6], fraction=0.15, gap=3)
    assert {label for label in labels[0] if label} == set(SPLITS)
    assert notes
    assert "shares frames" in notes[0]


def test_real_looking_corpus() -> None:
    labels = label_tails([4, 8, 1, 12, 16, 13], fraction=0.15, gap=3)[0]
    counts = {name: sum(video.count(name) for video in labels) for name in SPLITS}
    assert counts == {"train": 31, "validation": 5, "heldout": 6}
