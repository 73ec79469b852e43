"""The parts of what a variant generates, each made batch by batch: clips, prompt suite, continuations, long videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from magic141.evaluation.generation.long_videos import make_long
from magic141.evaluation.generation.short_videos import make_clips, make_continuations, make_suite
from magic141.evaluation.generation.workload import Workload
from magic141.evaluation.variants import Variant


@dataclass(frozen=True)
class Part:
    """One kind of videos.

    Attributes:
        make: makes some batches of a variant in a folder, with the names and numbers that their files have in the
            artifact; returns what they cost, to be kept as JSON.
        batch_sizes: clips of every batch.
        num_windows: windows of a clip, each sampled with all of the variant's evaluations.
    """

    make: Callable[..., Any]
    batch_sizes: Callable[[Workload], list[int]]
    num_windows: Callable[[Workload], int] = lambda work: 1


class Share(NamedTuple):
    """Some consecutive batches of a variant's part."""

    variant: Variant
    part: str
    batches: range

    def num_evaluations(self, work: Workload) -> int:
        """Network evaluations that it takes, counted per clip."""
        part = PARTS[self.part]
        clips = part.batch_sizes(work)[self.batches.start : self.batches.stop]
        return self.variant.num_evaluations * part.num_windows(work) * sum(clips)


def _sizes(num_clips: int, work: Workload) -> list[int]:
    size = work.config.batch_size
    return [min(size, num_clips - start) for start in range(0, num_clips, size)]


CLIPS, LONG = "exact", "long"
PARTS = {
    CLIPS: Part(make_clips, lambda work: _sizes(len(work.rows), work)),
    "suite": Part(make_suite, lambda work: _sizes(len(work.prompts), work) * work.config.num_seeds),
    "continuation": Part(make_continuations, lambda work: _sizes(len(work.continued_rows), work)),
    LONG: Part(make_long, lambda work: _sizes(len(work.long_rows), work), lambda work: work.config.long_video_windows),
}
SHORT = tuple(name for name in PARTS if name != LONG)
