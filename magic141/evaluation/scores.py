"""The dimensions on which variants are compared; a score is a value, or the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class Score:
    """A value with the standard error of its mean, or the reason why it is missing; never a silent zero."""

    value: float | None
    reason: str | None = None
    stderr: float | None = None

    def __post_init__(self) -> None:
        assert (self.value is None) != (self.reason is None), "a score has a value or a reason"

    @classmethod
    def missing(cls, reason: str) -> Score:
        """A score without a value, for `reason`."""
        return cls(None, reason)

    @classmethod
    def mean(cls, values: ArrayLike) -> Score:
        """The mean over the clips for which `values` is a number."""
        known = np.asarray(values, np.float64)
        known = known[np.isfinite(known)]
        if not len(known):
            return cls.missing("no clip has this score")
        error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
        return cls(float(known.mean()), stderr=error)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Dimension:
    """A column of the score table."""

    key: str
    label: str
    better: Literal["high", "low", "none"]
    digits: int
    help: str

    @property
    def heading(self) -> str:
        """The label with an arrow to where values are better."""
        return self.label + {"high": " ↑", "low": " ↓", "none": ""}[self.better]


MOTION = Dimension(
    "motion",
    "motion",
    "high",
    3,
    "the object moves whole and evenly from its true start, in an allowed direction and at an allowed speed",
)
EXACT = (
    MOTION,
    Dimension("direction", "direction", "high", 3, "within 22.5 degrees of a direction that the caption allows"),
    Dimension("iou", "subject", "high", 3, "the subject is kept: overlap with the true object"),
    Dimension("colour", "colour", "high", 3, "the object has the caption's colour"),
    Dimension("shape", "shape", "high", 3, "share of generated frames with the caption's shape"),
    Dimension("background_psnr_db", "background dB", "high", 1, "PSNR to the true background"),
    Dimension("psnr_db", "PSNR dB", "high", 1, "PSNR to the clip redrawn along the measured path"),
    Dimension("continuation_psnr_db", "continu. dB", "high", 1, "PSNR to the one future that 3 latent frames allow"),
    Dimension("speed_std", "speed std", "none", 2, "spread of the speed, pixels per frame; should match real"),
    Dimension("plus", "mode share", "none", 2, "axis captions: share of the first of 2 directions; truth 0.5"),
)
FRECHET = Dimension(
    "frechet",
    "Fréchet",
    "low",
    2,
    "Fréchet distance to valid futures of the same conditions (without ground truth: to the real clips), over each "
    "latent position's values through time",
)
TABLE_1 = (  # VBench's dimensions in the paper's Table 1, in its order
    Dimension("i2v_subject", "i2v subject", "high", 4, "similarity of the frames to the input image"),
    Dimension("subject_consistency", "subject cons.", "high", 4, "similarity of the frames to each other"),
    Dimension("motion_smoothness", "motion smooth.", "high", 4, "how well frames interpolate"),
    Dimension("dynamic_degree", "dynamic deg.", "high", 4, "share of videos with motion"),
    Dimension("aesthetic_quality", "aesthetic", "high", 4, "LAION aesthetic predictor"),
    Dimension("imaging_quality", "imaging", "high", 4, "MUSIQ"),
    Dimension(
        "temporal_flickering",
        "temporal flick.",
        "none",
        4,
        "1 minus the mean difference of frames, so that a frozen clip has 1; should match real",
    ),
)
AVERAGE = Dimension("vbench_average", "average", "high", 4, "mean of the seven before it, as in the paper's Table 1")
BACKGROUND = Dimension("background_consistency", "background cons.", "high", 4, "similarity of the frames, by CLIP")
VBENCH = (*TABLE_1, AVERAGE, BACKGROUND)
COSTS = (
    Dimension("nfe", "evaluations", "low", 0, "network evaluations per clip"),
    Dimension("latency_ms", "latency, ms", "low", 1, "time to sample one clip alone"),
    Dimension("cpu_ms_per_clip", "CPU ms per clip", "low", 1, "CPU time, sampled in batches"),
    Dimension(
        "peak_memory_mb",
        "peak memory, MiB",
        "low",
        0,
        "weights, and what sampling a batch needs in addition (on a CPU: the tensors alive at once)",
    ),
    Dimension("weight_mb", "weights, MiB", "low", 2, "size of the weights as stored"),
)
DIMENSIONS = (*EXACT, FRECHET, *VBENCH, *COSTS)  # in the order of the tables


def read_variants(folder: Path) -> list[dict[str, Any]]:
    """The entries of scores.json in an artifact of stage `evaluate`: each variant with its scores and costs."""
    return list(json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))["variants"])


def value_of(row: Mapping[str, Any], dimension: Dimension) -> float | None:
    """A variant's score; None where it is missing."""
    value = row.get("scores", {}).get(dimension.key, {}).get("value")
    return None if value is None else float(value)


def with_values(dimensions: Iterable[Dimension], rows: Sequence[Mapping[str, Any]]) -> list[Dimension]:
    """The dimensions in which some variant has a score."""
    return [dimension for dimension in dimensions if any(value_of(row, dimension) is not None for row in rows)]


def error_text(error: float | None, digits: int) -> str:
    """A standard error behind its value, as ±.013; empty where it is not known or rounds to zero."""
    text = f"{error or 0:.{digits}f}"
    return f"±{text.removeprefix('0')}" if float(text) else ""
