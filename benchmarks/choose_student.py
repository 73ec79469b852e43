"""Settings of the distillation compared on fresh clips, so that the held-out ones stay for reporting only.

    python benchmarks/choose_student.py --seeds 0 1 2 --try distill_dmd2.real_guidance_scale=1.25 \
        --try 'distill_dmd2.final_exit_fraction=0.4 distill_dmd2.num_steps=300'

Every student is trained whole, on one core, from the teachers of the seed's run of the demo; the configured one and
the teacher at many steps stand beside. Restartable: finished runs and students are reused. About 4 minutes a student.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from documents import store_results
from environment import settle
from finished import config_in, finished, parser_of_seeds, run_pipeline
from jury import Jury
from students import ONE_CORE, Student, train_students

from magic141.config import PipelineConfig
from magic141.evaluation.variants import Variant, list_variants
from magic141.models.transformer import load_transformer
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.spec import Dmd2Spec

NUM_CLIPS = 512
UNWATCHED = 10_000  # steps: the jury looks, once, at the end
COLUMNS = ("motion", "direction", "iou", "background_psnr_db", "skew", "frechet")
AS_CONFIGURED = "as configured"
Figures = Mapping[str, Mapping[str, float]]  # row -> score -> value


@dataclass(frozen=True)
class Case:
    """A seed and what is changed in its distillation."""

    config: str
    workspace: Path
    seed: int
    changes: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """The seed's workspace."""
        return self.workspace / f"seed{self.seed}"

    @property
    def pipeline(self) -> PipelineConfig:
        """The config with the changes."""
        return config_in(self.config, (f"seed={self.seed}", *self.changes), self.home)

    def made(self) -> dict[str, Path]:
        """Artifacts of the seed's run, which knows nothing of the changes."""
        return finished(config_in(self.config, (f"seed={self.seed}",), self.home), "distill_cfg")

    def student(self) -> Student:
        """The distillation, as long as configured."""
        config, made = self.pipeline, self.made()
        collapse = config.distill_dmd2.collapse.model_copy(update={"stop": False})
        changed = {"placement": ONE_CORE, "validate_every_steps": UNWATCHED, "collapse": collapse}
        dmd2 = Dmd2Config.model_validate(dict(config.distill_dmd2) | changed)
        teacher, start = (made[stage] / "transformer" for stage in ("pretrain_i2v", "distill_cfg"))
        return Student(Dmd2Spec(dmd2, config.model, made["prepare_data"], teacher, start), self.seed, self.home)


def judge_teacher(case: Case) -> Figures:
    """The undistilled models: the teacher at many steps, the CFG-distilled one at few."""
    made = case.made()
    teacher, *_ = variants = [v for v in _variants(case) if v.model in ("teacher", "cfg") and v.sampler == "euler"]
    shown = [teacher, *(v for v in variants if v.model == "cfg" and v.num_steps != teacher.num_steps)]
    stages = {"teacher": "pretrain_i2v", "cfg": "distill_cfg"}
    return _judge(case, [(made[stages[v.model]] / "transformer", v) for v in shown])


def judge_student(case: Case) -> Figures:
    """The student at every number of steps that is reported, and in the same chain what it started from."""
    start, student = case.made()["distill_cfg"] / "transformer", case.student().folder / "transformer"
    variants = _variants(case)
    before = [(start, v) for v in variants if v.name.startswith("cfg_chain")]
    return _judge(case, [*before, *((student, v) for v in variants if v.model == "student")])


def _variants(case: Case) -> list[Variant]:
    return list_variants(case.pipeline.generate, case.pipeline.distill_dmd2)


def _judge(case: Case, models: Sequence[tuple[Path, Variant]]) -> Figures:
    torch.set_num_threads(1)
    jury = Jury.open(case.pipeline, case.made()["prepare_data"], NUM_CLIPS)
    return {variant.label: jury.judge(load_transformer(folder).eval(), variant) for folder, variant in models}


def table(title: str, seeds: Sequence[Figures]) -> list[str]:
    """Rows of Markdown: means over the seeds."""
    rows = []
    for row in seeds[0]:
        means = [statistics.mean(figures[row][column] for figures in seeds) for column in COLUMNS]
        rows.append(f"| {title} | {row} | " + " | ".join(f"{value:.3f}" for value in means) + " |")
    return rows


def main() -> None:
    """Trains and judges what is missing, prints and stores the table."""
    settle()
    parser = parser_of_seeds(__doc__)
    parser.add_argument("--try", dest="tried", action="append", default=[], metavar="'A.B=C D.E=F'")
    arguments = parser.parse_args()
    workspace = arguments.workspace.resolve()
    for seed in arguments.seeds:
        run_pipeline(arguments.config, (f"seed={seed}",), workspace / f"seed{seed}", "distill_cfg")
    settings = ((), *(tuple(words.split()) for words in arguments.tried))
    cases = {words: [Case(arguments.config, workspace, seed, words) for seed in arguments.seeds] for words in settings}
    train_students([case.student() for of_seeds in cases.values() for case in of_seeds])
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        undistilled = pool.map(judge_teacher, cases[()])
        judged = {words: pool.map(judge_student, of_seeds) for words, of_seeds in cases.items()}
        found = {"undistilled": list(undistilled)}
        found |= {f"`{' '.join(words)}`" if words else AS_CONFIGURED: list(seeds) for words, seeds in judged.items()}
    lines = [row for title, figures in found.items() for row in table(title, figures)]
    head = f"Means over seeds {', '.join(map(str, arguments.seeds))}, {NUM_CLIPS} fresh clips each:"
    columns = f"| setting | model | {' | '.join(COLUMNS)} |\n|---|---|" + "--:|" * len(COLUMNS)
    text = "\n".join([head, "", columns, *lines])
    print(text)
    store_results("choose_student", text, seeds=arguments.seeds, num_clips=NUM_CLIPS, settings=found)


if __name__ == "__main__":
    main()
