"""The layout of the paper's Table 1 on the demo's world: mean and standard deviation over seeds.

    python benchmarks/paper_table1.py --workspace runs-table1 --seeds 0 1 2 --write-docs

Every seed is one run of the whole demo (data, training, distillation) plus the many rows of the table. Restartable:
finished stages of a seed are reused, so the same command goes on where it was stopped. Rows: Euler with CFG at 50, 28,
16, 8, 4 steps, CFG-distilled at 28 and 4, re-noise (the student's chain) at 4, the DMD2 student at 8, 4, 2, 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from documents import store_results, write_section
from environment import settle
from finished import parser_of_seeds
from scores_table import COLUMNS, Scores, run_seed

ROWS = {  # variant: name of the row
    "real": "held-out clips (floor of Fréchet)",
    "teacher_50": "Euler, CFG, 50 steps",
    "teacher_28": "Euler, CFG, 28 steps",
    "teacher_16": "Euler, CFG, 16 steps",
    "teacher_8": "Euler, CFG, 8 steps",
    "teacher_4": "Euler, CFG, 4 steps",
    "cfg_28": "CFG-distilled, 28 steps",
    "cfg_4": "CFG-distilled, 4 steps",
    "cfg_chain_4": "CFG-distilled, student's chain (re-noise), 4 steps",
    "student_8": "DMD2, 8 steps",
    "student_4": "DMD2, 4 steps",
    "student_2": "DMD2, 2 steps",
    "student_1": "DMD2, 1 step",
}
STEPS = ("generate.many_steps=50", "generate.few_steps=[28,16,8,4,2,1]")
COSTS = (("nfe", "evaluations", 0), ("cpu_ms_per_clip", "CPU ms per clip", 1))
Figures = dict[str, dict[str, float]]  # row -> column -> value


def figures_of(scores: Scores) -> Figures:
    """Every row of the table that the scores have."""
    columns = [name for name, _, _ in (*COSTS, *COLUMNS)]
    found = {row: {name: scores.get(row, name) for name in columns} for row in ROWS}
    return {row: {name: v for name, v in values.items() if v is not None} for row, values in found.items()}


def table(seeds: Sequence[Figures]) -> str:
    """Markdown: mean ± standard deviation over the seeds."""
    columns = [*COSTS, *COLUMNS]
    lines = ["| row | " + " | ".join(head for _, head, _ in columns) + " |", "|---|" + "--:|" * len(columns)]
    for row, label in ROWS.items():
        cells = [_cell([figures[row][name] for figures in seeds if name in figures[row]], d) for name, _, d in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean} ± {spread:.{digits}f}" if spread >= 0.5 * 10**-digits else mean


def main() -> None:
    """Runs what is missing, prints and stores the table."""
    settle()
    parser = parser_of_seeds(__doc__)
    parser.add_argument("--write-docs", action="store_true", help="also put the table into its document")
    arguments = parser.parse_args()
    workspace = arguments.workspace.resolve()
    figures = {
        seed: figures_of(run_seed(arguments.config, (f"seed={seed}", *STEPS), workspace / f"seed{seed}"))
        for seed in arguments.seeds
    }
    text = f"{_number(len(figures))} of `{arguments.config}`:\n\n{table(list(figures.values()))}"
    print("\n" + text)
    store_results("paper_table1", text, config=arguments.config, seeds=figures)
    if arguments.write_docs:
        write_section("table1", text)


def _number(count: int) -> str:
    return "One seed" if count == 1 else f"Mean ± standard deviation over {count} seeds"


if __name__ == "__main__":
    main()
