"""The claim that a weak shift of the real score steadies DMD2: short students over its strength and the rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finished import config_in, finished, run_pipeline
from students import NUM_UPDATES, Course, Student, short, train_students
from verdicts import Evidence, Verdict, at_most, mean

from magic141.training.dmd2.spec import Dmd2Spec

A_WEAK = (0.0, 0.1, 0.25, 0.5, 0.75)
RATES = (1.0, 16.0, 64.0)  # times the configured one of the generator
JUDGED = 0.5  # the strength that is compared with plain DMD2: chosen beforehand, it is the default


@dataclass(frozen=True)
class Setting:
    """A way to distil: strength of the weak shift, generator's rate, kind of the fake score."""

    a_weak: float
    rate: float = 1.0
    fake_score: str = "lora"


Courses = Mapping[Setting, Sequence[Course]]  # one a seed


def weak_shift(evidence: Evidence) -> Verdict:
    """Students over strength, rate and seeds; at last those with a full fake score."""
    settings = [*(Setting(a, rate) for rate in RATES for a in A_WEAK), *(Setting(0.0, rate, "full") for rate in RATES)]
    students = [_students(evidence, seed, settings) for seed in evidence.seeds]
    train_students([student for of_seed in students for student in of_seed])
    courses = {setting: [of_seed[i].course for of_seed in students] for i, setting in enumerate(settings)}
    figures = "; ".join(_beside_plain(courses, Setting(JUDGED, rate)) for rate in RATES)
    return Verdict(
        "a weak shift of the real score steadies DMD2",
        f"after {NUM_UPDATES} updates, Fréchet distance with a_weak {JUDGED:g} over plain DMD2's: {figures}",
        "; ".join(f"rate x {rate:g}: {at_most(_over_plain(courses, Setting(JUDGED, rate)), 1.0)}" for rate in RATES),
        details(courses),
    )


def details(courses: Courses) -> str:
    """A table: rows the strengths and the full fake score, columns the rates."""
    lines = [
        f"The weak shift: Fréchet distance of the student after {NUM_UPDATES} updates over that of the many-step model "
        "(its motion, over the same; collapsed students), by generator's rate:",
        "",
        "| fake score | " + " | ".join(f"rate x {rate:g}" for rate in RATES) + " |",
        "|---|" + "--:|" * len(RATES),
    ]
    for a_weak in A_WEAK:
        lines.append(_row(f"LoRA, a_weak {a_weak:g}", courses, [Setting(a_weak, rate) for rate in RATES]))
    return "\n".join([*lines, _row("full, a_weak 0", courses, [Setting(0.0, rate, "full") for rate in RATES])])


def _row(label: str, courses: Courses, settings: Sequence[Setting]) -> str:
    return f"| {label} | " + " | ".join(_cell(courses[setting]) for setting in settings) + " |"


def _cell(courses: Sequence[Course]) -> str:
    frechet = mean([course.last("frechet_ratio") for course in courses])
    motion = mean([course.last("motion_ratio") for course in courses])
    collapsed = sum(course.collapsed for course in courses)
    return f"{frechet} ({motion}; {collapsed} of {len(courses)})"


def _over_plain(courses: Courses, setting: Setting) -> list[float]:
    """Fréchet distance over that of plain DMD2 at the same rate, seed by seed."""
    pairs = zip(courses[setting], courses[Setting(0.0, setting.rate)], strict=True)
    return [ours.last("frechet") / plain.last("frechet") for ours, plain in pairs]


def _beside_plain(courses: Courses, setting: Setting) -> str:
    return f"{mean(_over_plain(courses, setting))} at rate x {setting.rate:g}"


def _students(evidence: Evidence, seed: int, settings: Sequence[Setting]) -> list[Student]:
    """Students of the seed's own teacher, from its own CFG-distilled model; these are made if they are missing."""
    home, overrides = evidence.workspace / f"seed{seed}", (f"seed={seed}",)
    run_pipeline(evidence.config, overrides, home, "distill_cfg")
    config = config_in(evidence.config, overrides, home)
    made = finished(config, "distill_cfg")
    teacher, start = (made[stage] / "transformer" for stage in ("pretrain_i2v", "distill_cfg"))
    configs = (short(config, {"a_weak": s.a_weak, "fake_score": s.fake_score}, s.rate) for s in settings)
    return [Student(Dmd2Spec(dmd2, config.model, made["prepare_data"], teacher, start), seed, home) for dmd2 in configs]
