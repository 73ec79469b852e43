"""Claims of the paper whose test is a training of its own: multi-modal guidance, I2V beside T2V."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from finished import config_in, finished, run_pipeline
from students import NUM_UPDATES, Course, Student, short, train_students
from verdicts import Evidence, Verdict, at_least, at_most, mean

from magic141.text_files import read_json_lines
from magic141.training.dmd2.spec import Dmd2Spec

SHORT_TRAINING = ("pretrain_t2v.num_steps=300", "pretrain_i2v.num_steps=1000")
VALIDATE_EVERY = 100
TASKS = ("I2V", "T2V")


def guidance_tokens(evidence: Evidence) -> Verdict:
    """I2V pretraining with and without image tokens: updates to the loss at which the one without ends."""
    shares, gains = [], []
    for seed in evidence.seeds:
        curves = {tokens: _loss_curve(evidence, seed, tokens) for tokens in (True, False)}
        num_updates = max(curves[False])
        target = curves[False][num_updates]
        shares.append(first_below(curves[True], target) / num_updates)
        gains.append(1 - curves[True][num_updates] / target)
    reached = [share for share in shares if math.isfinite(share)]
    sign, word = (1, "lower") if statistics.mean(gains) >= 0 else (-1, "higher")
    figures = (
        f"after {num_updates:g} updates the validation loss is {mean([sign * 100 * gain for gain in gains], 1)} % "
        f"{word} with them; {len(reached)} of {len(shares)} seeds reach the loss without them"
    )
    figures += f", in {mean(reached)} x the updates" if reached else ""
    return Verdict("multi-modal guidance speeds convergence", figures, at_least(gains, 0.0))


def i2v_faster(evidence: Evidence) -> Verdict:
    """The same step distillation of an I2V and of a T2V teacher that were trained for equally many updates."""
    pairs = [_students_of_both(evidence, seed) for seed in evidence.seeds]
    train_students([student for pair in pairs for student in pair.values()])
    courses = {task: [pair[task].course for pair in pairs] for task in TASKS}
    pairs_of_courses = list(zip(courses["I2V"], courses["T2V"], strict=True))
    shares = [_share_of_cost(i2v, t2v) for i2v, t2v in pairs_of_courses]
    own = [i2v.last("frechet_ratio") / t2v.last("frechet_ratio") for i2v, t2v in pairs_of_courses]
    figures = "; ".join(
        f"{task}: Fréchet distance {mean([c.last('frechet') for c in found])} after {NUM_UPDATES} updates, "
        f"{mean([c.last('frechet_ratio') for c in found])} x its own teacher's, "
        f"{mean([c.cpu_s / NUM_UPDATES for c in found])} CPU s an update"
        for task, found in courses.items()
    )
    if all(map(math.isfinite, shares)):
        figures += f"; I2V reaches the distance at which T2V ends in at most {mean(shares)} x the CPU time"
    to_real, to_teacher = at_most(shares, 1.0), at_most(own, 1.0)
    verdict = f"closer to real clips at equal cost: {to_real}; closer to its own teacher: {to_teacher}"
    return Verdict("I2V distils faster than T2V", figures, verdict, _curves(courses))


def first_below(curve: Mapping[float, float], target: float) -> float:
    """Where a falling curve first reaches a value, between its points by straight lines; infinity if never."""
    points = sorted(curve.items())
    if points[0][1] <= target:
        return points[0][0]
    for (x, y), (next_x, next_y) in pairwise(points):
        if next_y <= target:
            return x + (next_x - x) * (y - target) / (y - next_y)
    return math.inf


def _share_of_cost(i2v: Course, t2v: Course) -> float:
    """CPU time in which the I2V student comes as close to real clips as the T2V one at its end, over the latter's.

    At most: nobody looks before the first validation.
    """
    return first_below(i2v.curve("frechet"), t2v.last("frechet")) / NUM_UPDATES * i2v.cpu_s / t2v.cpu_s


def _curves(courses: Mapping[str, Sequence[Course]]) -> str:
    """A table: Fréchet distance by update, beside the teacher's own."""
    updates = sorted(courses["I2V"][0].curve("frechet"))
    lines = ["| Fréchet distance after | teacher | " + " | ".join(f"{update:g} updates" for update in updates) + " |"]
    lines.append("|---|" + "--:|" * (1 + len(updates)))
    for task, found in courses.items():
        teacher = mean([course.last("frechet") / course.last("frechet_ratio") for course in found])
        cells = [mean([course.curve("frechet")[update] for course in found]) for update in updates]
        cost = statistics.mean(course.cpu_s / NUM_UPDATES for course in found)
        lines.append(f"| {task}, {cost:.2f} CPU s an update | {teacher} | {' | '.join(cells)} |")
    return "\n".join(["Distilling I2V and T2V:", "", *lines])


def _students_of_both(evidence: Evidence, seed: int) -> dict[str, Student]:
    """An I2V and a T2V student; the T2V teacher is trained for as many updates as T2V and I2V together.

    Both start from their teachers: no CFG distillation comes first.
    """
    home = evidence.workspace / f"seed{seed}"
    config = config_in(evidence.config, (), home)
    num_updates = config.pretrain_t2v.num_steps + config.pretrain_i2v.num_steps
    settings = {"I2V": (f"seed={seed}",), "T2V": (f"seed={seed}", f"pretrain_t2v.num_steps={num_updates}")}
    return {
        task: _student_of(evidence, seed, overrides, "pretrain_i2v" if task == "I2V" else "pretrain_t2v")
        for task, overrides in settings.items()
    }


def _student_of(evidence: Evidence, seed: int, overrides: Sequence[str], stage: str) -> Student:
    """A student of a stage's model, which is made if it is missing."""
    home = evidence.workspace / f"seed{seed}"
    run_pipeline(evidence.config, overrides, home, stage)
    config = config_in(evidence.config, overrides, home)
    made = finished(config, stage)
    teacher = made[stage] / "transformer"
    dmd2 = short(config, {"start": "teacher"})
    return Student(Dmd2Spec(dmd2, config.model, made["prepare_data"], teacher, teacher), seed, home)


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
    points = read_json_lines(folder / "metrics.jsonl")
    return {float(point["step"]): point["validation_loss"] for point in points if "validation_loss" in point}
