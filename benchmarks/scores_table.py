"""The README's score table and a verdict on every target, from the scores of a finished run.

python benchmarks/scores_table.py                    # the newest scores below runs/
python benchmarks/scores_table.py --scores FILE --write-readme
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readme import RESULTS, write_section

COLUMNS = (  # score key, heading, digits
    ("direction", "direction", 2),
    ("motion", "motion", 2),
    ("iou", "subject IoU", 2),
    ("colour", "colour", 2),
    ("shape", "shape", 2),
    ("background_psnr_db", "background dB", 1),
    ("frechet", "Fréchet", 2),
    ("mode_share", "mode share", 2),
    ("temporal_flickering", "flicker (VBench)", 3),
)
LONG_COLUMNS = (("motion", "motion", 2), ("iou", "subject IoU", 2), ("background_psnr_db", "background dB", 1))
ALIASES = {"mode_share": ("mode_share", "plus")}


@dataclass(frozen=True)
class Target:
    """One promise: what is measured, the figure, and the bounds that it must lie in."""

    what: str
    measured: float
    low: float = float("-inf")
    high: float = float("inf")

    @property
    def met(self) -> bool:
        """Whether the figure lies within the bounds."""
        return self.low <= self.measured <= self.high

    def row(self) -> str:
        """A Markdown table row."""
        bounds = [f"≥ {self.low:.3g}"] * (self.low > float("-inf")) + [f"≤ {self.high:.3g}"] * (
            self.high < float("inf")
        )
        return f"| {self.what} | {' and '.join(bounds)} | {self.measured:.3g} | {'met' if self.met else '**missed**'} |"


class Scores:
    """Lookup in a scores.json."""

    def __init__(self, record: dict[str, Any]) -> None:
        """Indexes the variants of `record` by name."""
        self.record = record
        self.variants: dict[str, dict[str, Any]] = {variant["name"]: variant for variant in record["variants"]}

    def get(self, variant: str, key: str) -> float | None:
        """A score or a cost of a variant, or None where it is missing."""
        entry = self.variants.get(variant)
        if entry is None:
            return None
        if isinstance(entry.get(key), int | float):
            return float(entry[key])
        found = (entry["scores"].get(alias) for alias in ALIASES.get(key, (key,)))
        return next((score["value"] for score in found if score is not None), None)

    def need(self, variant: str, key: str) -> float:
        """A figure that a target cannot do without."""
        value = self.get(variant, key)
        if value is None:
            raise SystemExit(f"scores.json: {variant}.{key} is missing; the targets need a run of configs/demo.yaml")
        return value


def targets(scores: Scores, record: dict[str, Any]) -> Iterator[Target]:
    """What the demo promises, one by one."""
    need = scores.need

    def ratio(key: str, variant: str, other: str) -> float:
        return need(variant, key) / need(other, key)

    yield Target("teacher, 25 steps: direction", need("teacher_25", "direction"), low=0.93)
    yield Target("teacher, 25 steps: motion", need("teacher_25", "motion"), low=0.80)
    yield Target("CFG-distilled, 25 steps: motion / teacher", ratio("motion", "cfg_25", "teacher_25"), low=0.95)
    yield Target("CFG-distilled, 25 steps: CPU / teacher", ratio("cpu_ms_per_clip", "cfg_25", "teacher_25"), high=0.55)
    yield Target("student, 4 steps: motion / teacher", ratio("motion", "student_4", "teacher_25"), low=0.93)
    yield Target("student, 4 steps: Fréchet / teacher", ratio("frechet", "student_4", "teacher_25"), high=1.15)
    yield Target("student, 4 steps: Fréchet / undistilled 4 steps", ratio("frechet", "student_4", "cfg_4"), high=0.75)
    yield Target("student, 1 step: motion / undistilled 1 step", ratio("motion", "student_1", "cfg_1"), low=1.4)
    yield Target("student, 1 step: Fréchet / undistilled 1 step", ratio("frechet", "student_1", "cfg_1"), high=0.7)
    background = need("student_4", "background_psnr_db") - need("teacher_25", "background_psnr_db")
    yield Target("student, 4 steps: background dB minus teacher's", background, low=-3.0)
    yield Target("student, 4 steps: mode share", need("student_4", "mode_share"), low=0.4, high=0.6)
    yield Target("student, 4 steps: CPU / teacher", ratio("cpu_ms_per_clip", "student_4", "teacher_25"), high=0.1)
    drift = (record["long_video"].get("drift") or {}).get("student_4")
    if drift:
        lost = drift[0]["background_psnr_db"] - drift[-1]["background_psnr_db"]
        yield Target(f"student, long video: motion at window {len(drift)}", drift[-1]["motion"], low=0.85)
        yield Target(f"student, long video: background dB lost by window {len(drift)}", lost, high=6.0)


def score_table(scores: Scores) -> str:
    """The Markdown table of every variant."""
    shown = [column for column in COLUMNS if any(scores.get(name, column[0]) is not None for name in scores.variants)]
    heads = ["variant", "evaluations", "CPU ms per clip", *(head for _, head, _ in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for name, variant in scores.variants.items():
        cells = [_cell(scores.get(name, "nfe"), 0), _cell(scores.get(name, "cpu_ms_per_clip"), 1)]
        cells += [_cell(scores.get(name, key), digits) for key, _, digits in shown]
        lines.append("| " + " | ".join([variant.get("label", name), *cells]) + " |")
    return "\n".join(lines)


def drift_table(record: dict[str, Any]) -> str:
    """What the long videos keep from window to window: motion, subject, background dB; empty without ground truth."""
    drift: dict[str, list[dict[str, float]]] = record["long_video"].get("drift") or {}
    if not drift:
        return ""
    windows = sorted({0, *range(3, len(next(iter(drift.values()))), 4)})
    lines = ["| long video, window | " + " | ".join(str(window + 1) for window in windows) + " |"]
    lines.append("|---|" + "--:|" * len(windows))
    for name, rows in drift.items():
        for key, label, digits in LONG_COLUMNS:
            cells = [f"{rows[window][key]:.{digits}f}" for window in windows]
            lines.append(f"| {name.replace('_', ', ')} steps: {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def target_table(rows: Sequence[Target]) -> str:
    """The Markdown table of the verdicts."""
    return "\n".join(["| target | bound | measured | |", "|---|---|--:|---|", *(target.row() for target in rows)])


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def newest_scores(workspace: Path) -> Path:
    """The newest scores.json of a workspace; half-written folders begin with a dot."""
    found = [path for path in workspace.rglob("scores.json") if not any(p.startswith(".") for p in path.parts[1:])]
    if not found:
        raise SystemExit(f"{workspace}: no scores.json below it; run `make demo` first, or give --scores FILE")
    return max(found, key=lambda path: path.stat().st_mtime)


def main() -> None:
    """Prints the tables; exits with 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("runs"))
    parser.add_argument("--scores", type=Path, help="a scores.json; default: the newest of the workspace")
    parser.add_argument("--write-readme", action="store_true", help="also write README.md and benchmarks/results")
    arguments = parser.parse_args()
    path = arguments.scores or newest_scores(arguments.workspace)
    record = json.loads(path.read_text())
    scores = Scores(record)
    verdicts = list(targets(scores, record))
    text = "\n\n".join(filter(None, (score_table(scores), target_table(verdicts), drift_table(record))))
    print(text)
    if arguments.write_readme:
        RESULTS.mkdir(exist_ok=True)
        if path.resolve() != (RESULTS / "scores.json").resolve():
            shutil.copyfile(path, RESULTS / "scores.json")
        write_section("scores", text)
    raise SystemExit(not all(target.met for target in verdicts))


if __name__ == "__main__":
    main()
