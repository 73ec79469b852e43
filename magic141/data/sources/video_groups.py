"""Files that show the same: copies, links, and a video kept in two formats; they belong in one split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from magic141.errors import first_few


class VideoGroup(NamedTuple):
    """A video with its copies.

    Attributes:
        ranked_by: what decides the split of each: the digest of its content, whatever its name or the rest of the
            corpus; or the folder that it is held out with.
        videos: their numbers in the corpus; the first stands for all.
        counts: windows of each.
    """

    ranked_by: tuple[str, ...]
    videos: tuple[int, ...]
    counts: tuple[int, ...]


def group_videos(
    files: Sequence[str], digests: Sequence[str], counts: Sequence[int], by_folder: bool = False
) -> list[VideoGroup]:
    """Groups files of equal content, or of one name but for the suffix (a.mp4 beside a.mov), in their order.

    Args:
        files: paths inside the corpus.
        digests: of their contents.
        counts: windows of each.
        by_folder: whether videos of one subfolder are held out together.
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
    ranked_by = _folders(files, digests) if by_folder else digests
    return [
        VideoGroup(tuple(ranked_by[n] for n in group), tuple(group), tuple(counts[n] for n in group))
        for group in groups.values()
    ]


def _folders(files: Sequence[str], digests: Sequence[str]) -> list[str]:
    """The subfolder of each file, or the digest of one that is in none."""
    parents = [str(PurePosixPath(file).parent) for file in files]
    return [digest if parent == "." else f"folder {parent}" for parent, digest in zip(parents, digests, strict=True)]


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
