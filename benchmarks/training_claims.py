"""Claims of the paper whose test is a training of its own: the weak shift, multi-modal guidance, I2V beside T2V."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from finished import config_in, finished, run_pipeline
from scores_table import Scores, run_seed
from verdicts import Evidence, Verdict, below_one, mean

from magic141.artifacts import NullLog
from magic141.config import load_config
from magic141.training.dmd2 import Dmd2Spec
from magic141.training.stages import train

A_WEAK = (0.0, 0.25, 0.5, 0.75)
RATES = (1.0, 4.0)  # times the configured one of the generator
JUDGE_STUDENT = (
    "distill_dmd2.collapse.stop=false",
    "generate.many_steps=4",
    "generate.few_steps=[4]",
    "generate.long_video_windows=1",
)
SHORT_TRAINING = ("pretrain_t2v.num_steps=300", "pretrain_i2v.num_steps=1000")
VALIDATE_EVERY = 100
# Both tasks alike: the T2V model is trained as long as T2V and I2V together; no CFG distillation comes first.
LONG_T2V = ("pretrain_t2v.num_steps=1300",)
STEPS_OF_BOTH = 60
BOTH = {"num_steps": STEPS_OF_BOTH, "validate_every_steps": 20, "start": "teacher", "keep": "last"}


@dataclass(frozen=True)
class Setting:
    """A way to distil: strength of the weak shift, generator's rate, kind of the fake score."""

    a_weak: float
    rate: float = 1.0
    fake_score: str = "lora"

    def __str__(self) -> str:
        if self.fake_score == "full":
            return f"full fake score, rate x {self.rate:g}"
        return f"a_weak {self.a_weak:g}, rate x {self.rate:g}"


def weak_shift(evidence: Evidence) -> Verdict:
    """Students over the strength of the shift and the generator's learning rate; at last one with a full fake score."""
    settings = [*(Setting(a, rate) for rate in RATES for a in A_WEAK), Setting(0.0, 1.0, "full")]
    frechet: dict[Setting, list[float]] = {}
    rows = []
    for setting in settings:
        found = [_distilled(evidence, seed, setting) for seed in evidence.seeds]
        frechet[setting] = [scores.need("student_4", "frechet") for scores in found]
        motion = [scores.need("student_4", "motion") for scores in found]
        rows.append(f"{setting}: Fréchet {mean(frechet[setting])}, motion {mean(motion)}")
    verdict = "; ".join(_against_plain(frechet, rate) for rate in RATES)
    return Verdict("a weak shift of the real score steadies DMD2", "; ".join(rows), verdict)


def guidance_tokens(evidence: Evidence) -> Verdict:
    """I2V pretraining with and without image tokens: updates to the loss at which the one without ends."""
    shares, gains = [], []
    for seed in evidence.seeds:
        curves = {tokens: _loss_curve(evidence, seed, tokens) for tokens in (True, False)}
        num_updates = max(curves[False])
        target = curves[False][num_updates]
        shares.append(first_below(curves[True], target) / num_updates)
        gains.append(1 - curves[True][num_updates] / target)
    figures = (
        f"{mean(shares)} x the updates to the validation loss at which {num_updates:g} without them end; "
        f"after as many that loss is {mean([100 * gain for gain in gains], 1)} % lower"
    )
    return Verdict("multi-modal guidance speeds convergence", figures, below_one(shares))


def i2v_faster(evidence: Evidence) -> Verdict:
    """Step distillation of an I2V and of a T2V model after equally many updates of pretraining."""
    ratios: dict[str, list[float]] = {"I2V": [], "T2V": []}
    for seed in evidence.seeds:
        for task, found in ratios.items():
            found.append(_distance_to_own_teacher(evidence, seed, task))
    leads = [i2v / t2v for i2v, t2v in zip(ratios["I2V"], ratios["T2V"], strict=True)]
    figures = f"Fréchet distance after {STEPS_OF_BOTH} updates, relative to the many-step teacher's: " + ", ".join(
        f"{task} {mean(found)} x" for task, found in ratios.items()
    )
    return Verdict("I2V distils faster than T2V", figures, below_one(leads))


def first_below(curve: Mapping[float, float], target: float) -> float:
    """Where a falling curve first reaches a value, between its points by straight lines; its end if it does not."""
    points = sorted(curve.items())
    if points[0][1] <= target:
        return points[0][0]
    for (x, y), (next_x, next_y) in pairwise(points):
        if next_y <= target:
            return x + (next_x - x) * (y - target) / (y - next_y)
    return points[-1][0]


def _against_plain(frechet: Mapping[Setting, Sequence[float]], rate: float) -> str:
    """The best shift beside plain DMD2 at a rate, seed by seed."""
    best = min((s for s in frechet if s.rate == rate and s.a_weak > 0), key=lambda s: statistics.mean(frechet[s]))
    plain = frechet[Setting(0.0, rate)]
    ratios = [a / b for a, b in zip(frechet[best], plain, strict=True)]
    return f"rate x {rate:g}: {below_one(ratios)} (a_weak {best.a_weak:g}: Fréchet {mean(ratios)} x plain DMD2's)"


def _distilled(evidence: Evidence, seed: int, setting: Setting) -> Scores:
    """The scores of a student trained with a setting, on the seed's own teacher; four steps only."""
    rate = load_config(Path(evidence.config)).distill_dmd2.optimizer.learning_rate * setting.rate
    settings = (
        f"seed={seed}",
        f"distill_dmd2.a_weak={setting.a_weak}",
        f"distill_dmd2.fake_score={setting.fake_score}",
        f"distill_dmd2.optimizer.learning_rate={rate}",
        *JUDGE_STUDENT,
    )
    return run_seed(evidence.config, settings, evidence.workspace / f"seed{seed}")


def _distance_to_own_teacher(evidence: Evidence, seed: int, task: str) -> float:
    """The student's Fréchet distance after the last update, relative to its teacher's at many steps."""
    settings = (f"seed={seed}", *(SHORT_TRAINING if task == "I2V" else LONG_T2V))
    stage = "pretrain_i2v" if task == "I2V" else "pretrain_t2v"
    home = evidence.workspace / f"guidance{seed}"
    run_pipeline(evidence.config, settings, home, stage)
    config = config_in(evidence.config, settings, home)
    made = finished(config, stage)
    dmd2 = config.distill_dmd2.model_copy(update=BOTH)
    dmd2 = dmd2.model_copy(update={"collapse": dmd2.collapse.model_copy(update={"stop": False})})
    out = home / "claims" / f"{task}-{made[stage].name}"
    if not (out / "watch.json").is_file():
        teacher = made[stage] / "transformer"
        spec = Dmd2Spec(dmd2, config.model, made["prepare_data"], teacher, teacher)
        train(spec, dmd2, made["prepare_data"], out, NullLog(), seed, home / "claims" / f".{out.name}")
    return float(json.loads((out / "watch.json").read_text())["validations"][-1]["validation_frechet_ratio"])


def _loss_curve(evidence: Evidence, seed: int, tokens: bool) -> dict[float, float]:
    """Updates -> validation loss of a short I2V pretraining."""
    settings = (
        f"seed={seed}",
        f"data.encoder.image_tokens={str(tokens).lower()}",
        *SHORT_TRAINING,
        f"pretrain_i2v.validate_every_steps={VALIDATE_EVERY}",
    )
    home = evidence.workspace / f"guidance{seed}"
    run_pipeline(evidence.config, settings, home, "pretrain_i2v")
    folder = finished(config_in(evidence.config, settings, home), "pretrain_i2v")["pretrain_i2v"]
    points = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {float(point["step"]): point["validation_loss"] for point in points if "validation_loss" in point}
