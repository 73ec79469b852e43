"""Splits within videos, for corpora of few: their beginnings are for training, their ends for judging."""

from __future__ import annotations

from collections.abc import Sequence

Labels = list[str | None]
TAILS = ("heldout", "validation")  # from the end of a video backwards


def label_tails(
    counts: Sequence[int], fraction: float, gap: int, max_windows: int | None = None
) -> tuple[list[Labels], list[str]]:
    """Splits every video's windows in time: train first, then a validation or held-out tail, or both.

    A long video gets both tails, a shorter one the tail whose split lacks most so far, and one too short for a gap goes
    to a single split as a whole, so that gaps cost little. With three or more windows no split is left empty: if need
    be, the gap shrinks, which is noted.

    Args:
        counts: Windows per video.
        fraction: Share of all windows that is held out; the same share again is used for validation.
        gap: Windows dropped between two splits of a video, so that no frame is in both.
        max_windows: Most windows held out, and most used for validation; they are spread over all videos.

    Returns:
        One label a window (None: dropped, it overlaps another split's window) per video, and remarks for the log.
    """
    if max_windows is not None:
        fraction = min(fraction, max_windows / max(1, sum(counts)))
    owed = dict.fromkeys(TAILS, 0.0)
    labels: list[Labels] = []
    for count in counts:
        for name in TAILS:
            owed[name] += fraction * count
        tails = _choose_tails(count, owed, gap)
        for name, size in tails.items():
            owed[name] -= size
        labels.append(_label(count, tails, gap))
    return labels, [note for name in TAILS if (note := _fill_empty(labels, name, gap))]


def _choose_tails(count: int, owed: dict[str, float], gap: int) -> dict[str, int]:
    """Tail sizes of a video of `count` windows; at least half of it trains unless it is too short for a gap."""
    most_owed = max(TAILS, key=lambda name: owed[name])
    if count - 1 - gap < count / 2:
        return {most_owed: count} if owed[most_owed] >= count else {}
    sizes = {name: min(int(owed[name]), max(1, count // 4)) for name in TAILS}
    sizes = {name: size for name, size in sizes.items() if size > 0}
    both_cost = sum(sizes.values()) + len(sizes) * gap
    if len(sizes) == 2 and count - both_cost < count / 2:
        return {most_owed: sizes[most_owed]}
    return sizes


def _label(count: int, tails: dict[str, int], gap: int) -> Labels:
    """[train..., gap, validation..., gap, held-out...]."""
    labels: Labels = []
    for name in TAILS:
        if size := tails.get(name, 0):
            labels = [*[name] * size, *([None] * gap if labels else []), *labels]
    rest = count - len(labels)
    dropped = min(gap, rest) if labels else 0
    return [*["train"] * (rest - dropped), *[None] * dropped, *labels]


def _fill_empty(labels: list[Labels], name: str, gap: int) -> str | None:
    """Gives an empty split the last training window of the video that has most of them; returns a note."""
    num_train = [video.count("train") for video in labels]
    if any(name in video for video in labels) or sum(num_train) < 2:
        return None
    richest = max(range(len(labels)), key=lambda index: num_train[index])
    end = num_train[richest]
    kept_gap = min(gap, (end - 1) // 3)
    labels[richest][end - 1] = name
    labels[richest][end - 1 - kept_gap : end - 1] = [None] * kept_gap
    if kept_gap >= gap or end == 1:
        return None
    return (
        f"the corpus is small: the {name} split is one window that shares frames with training windows "
        f"(gap of {kept_gap} instead of {gap} windows)"
    )
