"""Which windows are for training, for validation and held out: whole videos or, if there are few, parts of each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from magic141.data.sources.split_tails import Labels, label_tails
from magic141.data.sources.video_groups import VideoGroup

SPLITS = ("train", "validation", "heldout")
HeldOut = Literal["videos", "short_videos", "tails"]
MEANING: dict[str, str] = {
    "videos": "held-out clips come from videos that are never trained on (a model trained while there were too few "
    "videos for this may have seen some of them)",
    "short_videos": "held-out clips come from videos that are never trained on, too short to be split; which ones may "
    "change with every video that is added",
    "tails": "held-out clips are later parts of videos that were trained on, since there are too few videos to hold "
    "out whole ones: scores on unseen videos would be worse",
}
MIN_HELD_VIDEOS = 3  # else parts of videos are held out: scores of fewer say little about unseen videos
MAX_SHARE = 0.25  # of the videos in each of the other two splits, so that half of them are trained on
SPARED_SHARE = 0.01  # of the videos may be held out even if `max_windows` is less, which then takes few of each
LATECOMERS = (
    "{name}: too few videos have no copy among the training videos, so the next in rank were taken; a model trained "
    "before those copies were added may have seen some of them"
)


class Split(NamedTuple):
    """Per video, one label per window (None: left out), which rule gave them, and notes for the log."""

    labels: list[Labels]
    heldout: HeldOut
    notes: list[str]


class Span(NamedTuple):
    """How far the nearest and the farthest copy of a video are from one end of the ranks, where none is trained on."""

    nearest: float
    farthest: float

    @classmethod
    def of(cls, distances: Iterable[float]) -> Span:
        """Of its copies."""
        ordered = sorted(distances)
        return cls(ordered[0], ordered[-1])


def split_windows(groups: Sequence[VideoGroup], fraction: float, gap: int, max_windows: int | None = None) -> Split:
    """Splits videos, each with its copies: whole ones where there are enough of them, else every one in time.

    Where a whole video belongs depends only on its content and that of its copies, so that a training video stays one:
    a corpus that grows holds out new videos, but none that was trained on. Of a video that is not for training, copies
    are left out: nothing is judged twice.

    Args:
        groups: Videos and their copies; the labels that are returned are of the videos that they number.
        fraction: Share of all windows that is held out; the same share again is used for validation.
        gap: Windows dropped between two splits of one video, so that no frame is in both.
        max_windows: Most windows held out, and most used for validation; they are spread over all such videos.
    """
    whole = _label_whole(groups, fraction, max_windows)
    firsts, remarks = whole or label_tails([group.counts[0] for group in groups], fraction, gap, max_windows)
    rule: HeldOut = "videos" if whole else _rule_of_tails(firsts)
    labels: list[Labels] = [[] for group in groups for _ in group.counts]
    for group, first in zip(groups, firsts, strict=True):
        for place, (video, count) in enumerate(zip(group.videos, group.counts, strict=True)):
            labels[video] = first if place == 0 else _label_copy(first, count)
    return Split(labels, rule, [MEANING[rule], *remarks])


def _rule_of_tails(labels: Sequence[Labels]) -> HeldOut:
    """Tails, if some held-out video is also trained on; else short videos, which are held out whole."""
    held = [video for video in labels if "heldout" in video]
    return "short_videos" if held and not any("train" in video for video in held) else "tails"


def _label_copy(first: Labels, count: int) -> Labels:
    """A copy is for training where the video itself is, and left out elsewhere; it may be a few windows longer."""
    longer = [*first, *first[-1:] * max(0, count - len(first))]
    return ["train" if label == "train" else None for label in longer[:count]]


def _label_whole(
    groups: Sequence[VideoGroup], fraction: float, max_windows: int | None
) -> tuple[list[Labels], list[str]] | None:
    """Labels of whole videos, and remarks for the log; None if there are too few videos for that."""
    total, share = sum(sum(group.counts) for group in groups), min(fraction, MAX_SHARE)
    sizes = _sizes(groups)
    spare = {
        index: group
        for index, group in enumerate(groups)
        if max(sizes[key] for key in group.ranked_by) <= share * total
    }
    if len({group.ranked_by[0] for group in spare.values()}) * share < MIN_HELD_VIDEOS:
        return None  # too few, or what there is lies in a few long ones, which training cannot spare
    labels: list[Labels] = [["train"] * group.counts[0] for group in groups]
    wanted = _share_of_videos(share, total, sum(len(group.videos) for group in groups), max_windows)
    remarks = []
    for name, spans in (("heldout", _spans(spare, 0)), ("validation", _spans(spare, 1))):
        free = {index: span for index, span in spans.items() if labels[index][0] == "train"}
        held = _nearest(free, wanted)
        _hold_out(held, name, labels, total if max_windows is None else max_windows)
        if _may_have_trained(held, free, wanted):
            remarks.append(LATECOMERS.format(name=name))
    return (labels, remarks) if all(any(name in video for video in labels) for name in SPLITS) else None


def _sizes(groups: Sequence[VideoGroup]) -> Counter[str]:
    """Windows of all that is ranked alike."""
    sizes: Counter[str] = Counter()
    for group in groups:
        sizes.update(dict.fromkeys(group.ranked_by, sum(group.counts)))
    return sizes


def _spans(groups: Mapping[int, VideoGroup], end: int) -> dict[int, Span]:
    """Of each video, from the end 0 or 1 of the ranks."""
    return {index: Span.of(abs(end - rank_of(digest)) for digest in group.ranked_by) for index, group in groups.items()}


def _nearest(spans: Mapping[int, Span], wanted: float) -> list[int]:
    """The videos all of whose copies are less far than `wanted`, nearest first; at least those in the nearest places.

    A copy that is added can only move a video farther away, into training. Videos of one folder are in one place.
    """
    places = sorted({span.farthest for span in spans.values()})
    few = max(places[:MIN_HELD_VIDEOS], default=0.0)
    near = [index for index, span in spans.items() if span.farthest < wanted or span.farthest <= few]
    return sorted(near, key=lambda index: spans[index].farthest)


def _may_have_trained(held: Sequence[int], spans: Mapping[int, Span], wanted: float) -> bool:
    """Whether some are held out only because copies moved others into training, so that too few were left."""
    few = sorted({span.nearest for span in spans.values()})[:MIN_HELD_VIDEOS]
    return any(spans[index].farthest > max(wanted, *few) for index in held)


def rank_of(key: str) -> float:
    """A file's or folder's place between 0, where the held-out ones are, and 1, where those for validation are."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:13], 16) / 16**13


def _share_of_videos(share: float, total: int, num_files: int, max_windows: int | None) -> float:
    """Share of videos to hold out; it never grows with the corpus, so that none is held out that was trained on."""
    if max_windows is None:
        return share
    one_of_each = min(max_windows / num_files, SPARED_SHARE)
    return min(share, max(max_windows / total, one_of_each))


def _hold_out(held: Sequence[int], name: str, labels: list[Labels], room: int) -> None:
    """Labels videos in place: at most `room` windows, as many of every video, in its middle or evenly spread."""
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
