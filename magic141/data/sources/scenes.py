"""Where a video's windows are: each within one scene, whose first frame is what a later window continues."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from magic141.data.config import DataConfig


class WindowPlace(NamedTuple):
    """A window's first frame, and that of its scene; after resampling."""

    start: int
    scene_start: int


def scenes_of(num_frames: int, cuts: Sequence[int]) -> list[range]:
    """The frames of each scene, given those that begin a later one."""
    return [range(start, stop) for start, stop in pairwise([0, *cuts, num_frames])]


def longest_scene(num_frames: int, cuts: Sequence[int]) -> int:
    """Frames of the longest scene."""
    return max(map(len, scenes_of(num_frames, cuts)))


def place_windows(num_frames: int, cuts: Sequence[int], config: DataConfig) -> list[WindowPlace]:
    """All windows of a video, in order; scenes that are too short have none."""
    return [
        WindowPlace(start, scene.start)
        for scene in scenes_of(num_frames, cuts)
        for start in range(scene.start, scene.stop - config.num_frames + 1, config.stride_frames)
    ]


def note_cuts(cuts: Sequence[Sequence[int]], config: DataConfig) -> list[str]:
    """A remark for the log on the cuts of videos, if there are any."""
    with_cuts = [found for found in cuts if found]
    if not with_cuts:
        return []
    total = sum(map(len, with_cuts))
    score = f"data.cut_score = {config.cut_score:g}"
    return [f"{total} cuts in {len(with_cuts)} of {len(cuts)} videos ({score}): no clip spans two scenes"]
