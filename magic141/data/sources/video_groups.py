"""Files that show the same: copies, links, and a video kept in two formats; they belong in one split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from magic141.errors import first_few


class VideoGroup(NamedTuple):
    """A video with its copies.

    Attributes:
        digests: of their contents; these identify the files, whatever their names or the rest of the corpus.
        videos: their numbers in the corpus; the first stands for all.
        counts: windows of each.
    """

    digests: tuple[str, ...]
    videos: tuple[int, ...]
    counts: tuple[int, ...]


def group_videos(files: Sequence[str], digests: Sequence[str], counts: Sequence[int]) -> list[VideoGroup]:
    """Groups files of equal content, or of one name but for the suffix (a.mp4 beside a.mov), in their order.

    Args:
        files: paths inside the corpus.
        digests: of their contents.
        counts: windows of each.
    """
    leaders = list(range(len(files)))  # for every file an earlier one of its group, or itself
    named: dict[str, int] = {}
    for number, (file, digest) in enumerate(zip(files, digests, strict=True)):
        for name in (f"content {digest}", f"name {PurePosixPath(file).with_suffix('')}"):
            pair = _first(named.setdefault(name, number), leaders), _first(number, leaders)
            leaders[max(pair)] = min(pair)
    groups: dict[int, list[int]] = {}
    for number in range(len(files)):
        groups.setdefault(_first(number, leaders), []).append(number)
    return [
        VideoGroup(tuple(digests[n] for n in group), tuple(group), tuple(counts[n] for n in group))
        for group in groups.values()
    ]


def note_copies(files: Sequence[str], groups: Sequence[VideoGroup]) -> list[str]:
    """A remark for the log, if there are copies."""
    copies = [files[number] for group in groups for number in group.videos[1:]]
    remark = (
        "copies of other videos (same content, or same name with another suffix): used for training if the original "
        "is, otherwise left out"
    )
    return [f"{first_few(copies, 3)}: {remark}"] if copies else []


def _first(number: int, leaders: Sequence[int]) -> int:
    """The first file of a file's group."""
    while leaders[number] != number:
        number = leaders[number]
    return number
