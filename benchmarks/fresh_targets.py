"""The targets of single clips on many fresh ones, on which nothing was chosen: less chance than on a run's own 256.

    python benchmarks/fresh_targets.py --workspace runs-table1 --seeds 0 1 2 --write-docs
    python benchmarks/fresh_targets.py --workspace runs-kept --seeds 3 4 5 --kept-apart --write-docs

A run's Frechet distances are between small sets, which adds nearly the same to all of them and draws their ratios to 1.
Runs what is missing; about 4 minutes a seed for judging. `--kept-apart` is for seeds on whose runs
nothing was chosen either; they have a section and a file of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch
from documents import store_results, write_section
from environment import settle
from finished import config_in, finished, parser_of_seeds, run_pipeline
from jury import Jury
from scores_table import Scores, over_seeds, target_table, targets_of_clips

from magic141.evaluation.variants import list_variants
from magic141.models.transformer import load_transformer

NUM_CLIPS = 1024
STREAM = 142  # settings are chosen on clips of another
STAGES = {"teacher": "pretrain_i2v", "cfg": "distill_cfg", "student": "distill_dmd2"}
VARIANTS = (  # those of the targets, and what the student starts from in its own chain
    "teacher_25",
    "cfg_25",
    "cfg_4",
    "cfg_1",
    "cfg_chain_4",
    "cfg_chain_1",
    "student_4",
    "student_1",
)


def judge(config_file: str, home: Path, seed: int, name: str) -> dict[str, float]:
    """Scores of one variant of a seed's finished run."""
    torch.set_num_threads(1)
    config = config_in(config_file, (f"seed={seed}",), home)
    made = finished(config, "distill_dmd2")
    (variant,) = [v for v in list_variants(config.generate, config.distill_dmd2) if v.name == name]
    jury = _jury(config_file, home, seed, made["prepare_data"])
    return jury.judge(load_transformer(made[STAGES[variant.model]] / "transformer").eval(), variant)


@lru_cache(maxsize=1)
def _jury(config_file: str, home: Path, seed: int, data: Path) -> Jury:
    return Jury.open(config_in(config_file, (f"seed={seed}",), home), data, NUM_CLIPS, STREAM)


def as_scores(figures: dict[str, dict[str, float]]) -> Scores:
    """In the form of a run's own scores."""
    variants = [
        {"name": name, "scores": {key: {"value": value} for key, value in scores.items()}}
        for name, scores in figures.items()
    ]
    return Scores({"variants": variants})


def skew_table(found: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    """How unevenly the two ways along an axis are taken, by seed."""
    lines = ["| skew, by seed | " + " | ".join(VARIANTS) + " |", "|---|" + "--:|" * len(VARIANTS)]
    for seed, figures in found.items():
        lines.append(f"| {seed} | " + " | ".join(f"{figures[name]['skew']:.2f}" for name in VARIANTS) + " |")
    return "\n".join(lines)


def main() -> None:
    """Judges, prints and stores."""
    settle()
    parser = parser_of_seeds(__doc__)
    parser.add_argument("--kept-apart", action="store_true", help="nothing was chosen on the runs of these seeds")
    parser.add_argument("--write-docs", action="store_true", help="also write the document and benchmarks/results")
    arguments = parser.parse_args()
    homes = {seed: arguments.workspace.resolve() / f"seed{seed}" for seed in arguments.seeds}
    for seed, home in homes.items():
        run_pipeline(arguments.config, (f"seed={seed}",), home, "distill_dmd2")
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        judged = {
            (seed, name): pool.submit(judge, arguments.config, home, seed, name)
            for seed, home in homes.items()
            for name in VARIANTS
        }
        found = {seed: {name: judged[seed, name].result() for name in VARIANTS} for seed in homes}
    head = f"Means over seeds {', '.join(map(str, homes))}, {NUM_CLIPS:,} fresh clips each:"
    verdicts = over_seeds([list(targets_of_clips(as_scores(figures))) for figures in found.values()])
    text = f"{head}\n\n{target_table(verdicts)}\n\n{skew_table(found)}"
    print(text)
    if arguments.write_docs:
        section, file = ("kept", "fresh_targets_kept_apart") if arguments.kept_apart else ("fresh", "fresh_targets")
        store_results(file, text, num_clips=NUM_CLIPS, seeds=found)
        write_section(section, text)
    raise SystemExit(not all(target.met for target in verdicts))


if __name__ == "__main__":
    main()
