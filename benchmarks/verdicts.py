"""A claim's verdict, and figures over seeds that it rests on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scores_table import Scores


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
    return (share * (1 - share) / (num_clips * len(shares))) ** 0.5


def mean(values: Sequence[float], digits: int = 2, error: float = 0.0) -> str:
    """Mean, and the larger of its standard deviation over seeds and its error from the number of clips."""
    noise = max(spread(values), error)
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {noise:.{digits}f}" if noise else "")


def below_one(ratios: Sequence[float]) -> str:
    """The verdict on a claim that ratios, one a seed, are below 1."""
    middle, noise = statistics.mean(ratios), spread(ratios)
    return "holds" if middle + noise < 1 else "does not hold here" if middle - noise > 1 else "within noise"


def at_least(values: Sequence[float], bound: float, error: float = 0.0) -> bool:
    """Whether the mean reaches the bound within the noise."""
    return statistics.mean(values) + max(spread(values), error) >= bound


def at_most(values: Sequence[float], bound: float, error: float = 0.0) -> bool:
    """Whether the mean stays below the bound within the noise."""
    return statistics.mean(values) - max(spread(values), error) <= bound
