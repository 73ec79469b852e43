"""Which windows of which video train, validate and are held out: those of whole videos or, of few videos, tails."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from magic141.data.sources.split_tails import Labels, label_tails
from magic141.data.sources.video_groups import VideoGroup

SPLITS = ("train", "validation", "heldout")
HeldOut = Literal["videos", "tails"]
MEANING: dict[str, str] = {
    "videos": "held-out clips are of videos that nobody trained on",
    "tails": "held-out clips are later parts of videos that were trained on, since there are too few videos to hold "
    "out whole ones: scores of unseen videos would be worse",
}
MIN_HELD_VIDEOS = 3  # that whole videos are held out: scores of fewer say little about videos that nobody trained on
MAX_SHARE = 0.25  # of the videos in each of the two splits that do not train, so that half of them does
SPARED_SHARE = 0.01  # of the videos may be held out even if `max_windows` is less, which then takes few of each


class Split(NamedTuple):
    """Per video, one label per window (None: left out), which rule gave them, and notes for the log."""

    labels: list[Labels]
    heldout: HeldOut
    notes: list[str]


def split_windows(groups: Sequence[VideoGroup], fraction: float, gap: int, max_windows: int | None = None) -> Split:
    """Splits videos, each with its copies, as a whole where there are enough of them, else every one in time.

    Where a whole video belongs depends on its content alone, so that a corpus that grows keeps its splits. The copies
    of one that does not train are left out: nothing is judged twice.

    Args:
        groups: Videos and their copies; the labels that are returned are of the videos that they number.
        fraction: Share of all windows that is held out; the same share again is used for validation.
        gap: Windows dropped between two splits of one video, so that no frame is in both.
        max_windows: Most windows held out, and most used for validation; they are spread over all such videos.
    """
    counts = [group.counts[0] for group in groups]
    firsts = _label_whole([group.key for group in groups], counts, fraction, max_windows)
    rule: HeldOut = "tails" if firsts is None else "videos"
    notes = [MEANING[rule]]
    if firsts is None:
        firsts, remarks = label_tails(counts, fraction, gap, max_windows)
        notes += remarks
    labels: list[Labels] = [[] for group in groups for _ in group.counts]
    for group, first in zip(groups, firsts, strict=True):
        for place, (video, count) in enumerate(zip(group.videos, group.counts, strict=True)):
            labels[video] = first if place == 0 else _label_copy(first, count)
    return Split(labels, rule, notes)


def _label_copy(first: Labels, count: int) -> Labels:
    """A copy trains where the video itself does, and is left out elsewhere; it may be a few windows longer."""
    longer = [*first, *first[-1:] * max(0, count - len(first))]
    return ["train" if label == "train" else None for label in longer[:count]]


def _label_whole(
    keys: Sequence[str], counts: Sequence[int], fraction: float, max_windows: int | None
) -> list[Labels] | None:
    """Labels of whole videos; None if there are too few videos for that."""
    total, share = sum(counts), min(fraction, MAX_SHARE)
    ranks = {index: rank_of(keys[index]) for index, count in enumerate(counts) if count <= share * total}
    if len(ranks) * share < MIN_HELD_VIDEOS:
        return None  # too few, or what there is lies in a few long ones, which training cannot spare
    labels: list[Labels] = [["train"] * count for count in counts]
    room = total if max_windows is None else max_windows
    wanted = _share_of_videos(share, total, len(counts), max_windows)
    _hold_out(_nearest(ranks, wanted), "heldout", labels, room)
    _hold_out(_nearest({index: 1 - rank for index, rank in ranks.items()}, wanted), "validation", labels, room)
    return labels if all(any(name in video for video in labels) for name in SPLITS) else None


def _nearest(distances: dict[int, float], wanted: float) -> list[int]:
    """The videos less far than `wanted`, nearest first; at least the nearest few."""
    ordered = sorted(distances, key=lambda index: distances[index])
    return ordered[: max(MIN_HELD_VIDEOS, sum(distance < wanted for distance in distances.values()))]


def rank_of(key: str) -> float:
    """A video's place between 0, where the held-out ones are, and 1, where the validating ones are."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:13], 16) / 16**13


def _share_of_videos(share: float, total: int, num_videos: int, max_windows: int | None) -> float:
    """Share of videos to hold out; it never grows with the corpus, so that no video that trained is held out later."""
    if max_windows is None:
        return share
    one_of_each = min(max_windows / num_videos, SPARED_SHARE)
    return min(share, max(max_windows / total, one_of_each))


def _hold_out(held: Sequence[int], name: str, labels: list[Labels], room: int) -> None:
    """Labels videos in place: at most `room` windows, of every video as many, in its middle or evenly spread."""
    kept = _deal([len(labels[index]) for index in held], room)
    for index, num in zip(held, kept, strict=True):
        count = len(labels[index])
        labels[index] = [None] * count
        for turn in range(num):
            labels[index][(2 * turn + 1) * count // (2 * num)] = name


def _deal(counts: Sequence[int], room: int) -> list[int]:
    """How many windows of each video are kept: one of each in turn, until there is no more room."""
    kept = [0] * len(counts)
    while room > 0 and (open_ones := [i for i, count in enumerate(counts) if kept[i] < count]):
        each = max(1, min(room // len(open_ones), min(counts[i] - kept[i] for i in open_ones)))
        for index in open_ones[: max(1, room // each)]:
            kept[index] += each
            room -= each
    return kept
