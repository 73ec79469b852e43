"""The score table and a verdict on every target, from finished runs of the demo.

python benchmarks/scores_table.py                                                     # the newest scores in runs/
python benchmarks/scores_table.py --workspace runs-table1 --seeds 0 1 2 --write-docs  # means; runs what is missing
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from documents import store_results, write_section
from environment import settle
from finished import config_in, finished, run_pipeline

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
    """One promise: what is measured, the figure, the bounds that it must lie in, and every seed's figure."""

    what: str
    measured: float
    low: float = float("-inf")
    high: float = float("inf")
    by_seed: tuple[float, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the figure lies within the bounds."""
        return self.low <= self.measured <= self.high

    def row(self) -> str:
        """A Markdown table row."""
        bounds = [f"≥ {self.low:.3g}"] * (self.low > float("-inf")) + [f"≤ {self.high:.3g}"] * (
            self.high < float("inf")
        )
        seeds = ", ".join(self._marked(value) for value in self.by_seed) or "-"
        verdict = "met" if self.met else "**missed**"
        return f"| {self.what} | {' and '.join(bounds)} | {self.measured:.3g} | {seeds} | {verdict} |"

    def _marked(self, value: float) -> str:
        return f"{value:.3g}" if self.low <= value <= self.high else f"**{value:.3g}**"


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


def over_seeds(seeds: Sequence[Sequence[Target]]) -> list[Target]:
    """Every target on the mean of the seeds' figures."""
    return [_over_seeds([target.measured for target in same], same[0]) for same in zip(*seeds, strict=True)]


def _over_seeds(values: Sequence[float], target: Target) -> Target:
    return replace(target, measured=statistics.mean(values), by_seed=tuple(values) if len(values) > 1 else ())


def targets(scores: Scores) -> list[Target]:
    """What the demo promises, one by one."""
    return [*targets_of_clips(scores), *targets_of_cost(scores), *targets_of_long_videos(scores)]


def targets_of_clips(scores: Scores) -> Iterator[Target]:
    """Of the clips of one window."""
    need = scores.need

    def ratio(key: str, variant: str, other: str) -> float:
        return need(variant, key) / need(other, key)

    yield Target("teacher, 25 steps: direction", need("teacher_25", "direction"), low=0.93)
    yield Target("teacher, 25 steps: motion", need("teacher_25", "motion"), low=0.80)
    yield Target("CFG-distilled, 25 steps: motion / teacher", ratio("motion", "cfg_25", "teacher_25"), low=0.95)
    yield Target("student, 4 steps: motion / teacher", ratio("motion", "student_4", "teacher_25"), low=0.93)
    yield Target("student, 4 steps: Fréchet / teacher", ratio("frechet", "student_4", "teacher_25"), high=1.15)
    yield Target(
        "student, 4 steps: Fréchet / CFG-distilled, 4 steps", ratio("frechet", "student_4", "cfg_4"), high=0.75
    )
    yield Target("student, 1 step: motion / CFG-distilled, 1 step", ratio("motion", "student_1", "cfg_1"), low=1.4)
    yield Target("student, 1 step: Fréchet / CFG-distilled, 1 step", ratio("frechet", "student_1", "cfg_1"), high=0.7)
    background = need("student_4", "background_psnr_db") - need("teacher_25", "background_psnr_db")
    yield Target("student, 4 steps: background dB minus teacher's", background, low=-3.0)
    yield Target("student, 4 steps: mode share", need("student_4", "mode_share"), low=0.4, high=0.6)


def targets_of_cost(scores: Scores) -> Iterator[Target]:
    """CPU time beside the teacher's."""
    teacher, cfg, student = (scores.need(name, "cpu_ms_per_clip") for name in ("teacher_25", "cfg_25", "student_4"))
    yield Target("CFG-distilled, 25 steps: CPU / teacher", cfg / teacher, high=0.55)
    yield Target("student, 4 steps: CPU / teacher", student / teacher, high=0.1)


def targets_of_long_videos(scores: Scores) -> Iterator[Target]:
    """What is left at the last window."""
    drift = (scores.record["long_video"].get("drift") or {}).get("student_4")
    if drift:
        lost = drift[0]["background_psnr_db"] - drift[-1]["background_psnr_db"]
        yield Target(f"student, long video: motion at window {len(drift)}", drift[-1]["motion"], low=0.85)
        yield Target(f"student, long video: background dB lost by window {len(drift)}", lost, high=6.0)


def score_table(seeds: Sequence[Scores]) -> str:
    """The Markdown table of every variant, means over the seeds."""
    first = seeds[0]
    shown = [column for column in COLUMNS if any(first.get(name, column[0]) is not None for name in first.variants)]
    heads = ["variant", "evaluations", "CPU ms per clip", *(head for _, head, _ in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for name, variant in first.variants.items():
        columns = [("nfe", 0), ("cpu_ms_per_clip", 1), *((key, digits) for key, _, digits in shown)]
        cells = [_cell([scores.get(name, key) for scores in seeds], digits) for key, digits in columns]
        lines.append("| " + " | ".join([variant.get("label", name), *cells]) + " |")
    return "\n".join(lines)


def drift_table(seeds: Sequence[Scores]) -> str:
    """What the long videos keep from window to window, means over the seeds; empty without ground truth."""
    drifts: list[dict[str, list[dict[str, float]]]] = [
        scores.record["long_video"].get("drift") or {} for scores in seeds
    ]
    if not all(drifts):
        return ""
    windows = sorted({0, *range(3, len(next(iter(drifts[0].values()))), 4)})
    lines = ["| long video, window | " + " | ".join(str(window + 1) for window in windows) + " |"]
    lines.append("|---|" + "--:|" * len(windows))
    for name in drifts[0]:
        for key, label, digits in LONG_COLUMNS:
            cells = [_cell([drift[name][window][key] for drift in drifts], digits) for window in windows]
            lines.append(f"| {name.replace('_', ', ')} steps: {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def target_table(rows: Sequence[Target]) -> str:
    """The Markdown table of the verdicts."""
    head = ["| target | bound | measured | by seed | |", "|---|---|--:|---|---|"]
    return "\n".join([*head, *(target.row() for target in rows)])


def _cell(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.{digits}f}" if known else "-"


def newest_scores(workspace: Path) -> Path:
    """The newest scores.json of a workspace; half-written folders begin with a dot."""
    found = [path for path in workspace.rglob("scores.json") if not any(p.startswith(".") for p in path.parts[1:])]
    if not found:
        raise SystemExit(f"{workspace}: no scores.json below it; run `make demo` first, or give --workspace DIR")
    return max(found, key=lambda path: path.stat().st_mtime)


def main() -> None:
    """Prints the tables; exits with 1 when a target is missed."""
    settle()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--workspace", type=Path, default=Path("runs"), help="with --seeds: one folder a seed below it")
    parser.add_argument("--seeds", type=int, nargs="+", help="run the config with these seeds, or reuse what is there")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="with --seeds")
    parser.add_argument("--write-docs", action="store_true", help="also write the documents and benchmarks/results")
    arguments = parser.parse_args()
    if arguments.seeds:
        workspace = arguments.workspace.resolve()
        seeds = [
            run_seed(arguments.config, (f"seed={seed}", *arguments.overrides), workspace / f"seed{seed}")
            for seed in arguments.seeds
        ]
    else:
        seeds = [Scores(json.loads(newest_scores(arguments.workspace).read_text()))]
    verdicts = over_seeds([targets(scores) for scores in seeds])
    title = f"Means over {len(seeds)} seeds:" if len(seeds) > 1 else ""
    tables = "\n\n".join(filter(None, (title, score_table(seeds), drift_table(seeds))))
    print(f"{tables}\n\n{target_table(verdicts)}")
    if arguments.write_docs:
        store_results("scores", tables, config=arguments.config, seeds=[scores.record for scores in seeds])
        write_section("scores", tables)
        write_section("targets", target_table(verdicts))
    raise SystemExit(not all(target.met for target in verdicts))


def run_seed(config: str, overrides: Sequence[str], home: Path) -> Scores:
    """The scores of a run in a workspace of its own, made now or before."""
    run_pipeline(config, overrides, home, "evaluate")
    found = finished(config_in(config, overrides, home), "evaluate")
    return Scores(json.loads((found["evaluate"] / "scores.json").read_text()))


if __name__ == "__main__":
    main()
