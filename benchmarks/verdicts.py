"""A claim's verdict, and figures over seeds that it rests on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scores_table import Scores

HOLDS, UNDECIDED, FAILS = "holds", "not decided, within noise", "does not hold here"


@dataclass(frozen=True)
class Verdict:
    """What was claimed, what came out, whether that bears the claim out, and a table of its own if it has one."""

    claim: str
    figures: str
    verdict: str
    details: str = ""


@dataclass(frozen=True)
class Evidence:
    """Where the finished runs are, and the scores of every seed (none for claims that need no whole run)."""

    config: str
    workspace: Path
    seeds: Sequence[int]
    scores: Sequence[Scores] = ()

    def values(self, figure: Callable[[Scores], float]) -> list[float]:
        """A figure of every seed."""
        return [figure(scores) for scores in self.scores]


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for one seed."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def share_error(shares: Sequence[float], num_clips: int) -> float:
    """Standard error of a share of clips, as the mean share over the seeds has it."""
    share = statistics.mean(shares)
    return math.sqrt(share * (1 - share) / (num_clips * len(shares)))


def mean(values: Sequence[float], digits: int = 2, error: float = 0.0) -> str:
    """Mean, and the larger of its standard deviation over seeds and its error from the number of clips."""
    noise = max(spread(values), error)
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {noise:.{digits}f}" if noise else "")


def at_most(values: Sequence[float], bound: float, error: float = 0.0) -> str:
    """Whether values, one a seed, are at most `bound`: the more they scatter, the less is decided."""
    if not all(map(math.isfinite, values)):
        return FAILS
    middle, noise = statistics.mean(values), max(spread(values), error)
    return HOLDS if middle + noise <= bound else FAILS if middle - noise > bound else UNDECIDED


def at_least(values: Sequence[float], bound: float, error: float = 0.0) -> str:
    """Whether values, one a seed, are at least `bound`."""
    return at_most([-value for value in values], -bound, error)


def all_of(*judgements: str) -> str:
    """The judgement on a claim of several parts: that of the weakest."""
    return max(judgements, key=(HOLDS, UNDECIDED, FAILS).index)
