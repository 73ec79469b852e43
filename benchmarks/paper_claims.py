"""The paper's claims at the demo's size, each with figures over seeds and a verdict.

    python benchmarks/paper_claims.py --workspace runs-table1 --seeds 0 1 2 --write-docs
    python benchmarks/paper_claims.py --workspace runs-table1 --claims weak_shift         # 54 short students
    python benchmarks/paper_claims.py --workspace runs-table1 --claims i2v_faster         # a T2V teacher a seed
    python benchmarks/paper_claims.py --workspace runs-table1 --claims guidance_tokens    # short pretrainings

Uses the runs of `paper_table1.py` (same workspace) and makes those that are missing. Restartable, like that script.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from documents import RESULTS, store_results, write_section
from environment import made_with, settle
from finished import parser_of_seeds
from paper_table1 import STEPS
from scores_table import Scores, run_seed
from training_claims import guidance_tokens, i2v_faster
from verdicts import FAILS, HOLDS, Evidence, Verdict, all_of, at_least, at_most, mean, share_error
from weak_shift import weak_shift

from flows.planning.estimates import InputSizes
from magic141.config import PipelineConfig, load_config
from magic141.models.size import num_parameters
from magic141.training.memory import state_bytes

JUDGED_CLIPS, LONG_CLIPS = 256, 16  # of the demo: generate.num_exact_clips, generate.long_video_clips
PAPER_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "hunyuan_13b.yaml"


def steps(evidence: Evidence) -> Verdict:
    """Four steps against the many-step teacher."""
    motion = evidence.values(lambda s: s.need("student_4", "motion") / s.need("teacher_50", "motion"))
    shares = evidence.values(lambda s: s.need("teacher_50", "motion"))
    error = 2**0.5 * share_error(shares, JUDGED_CLIPS) / statistics.mean(shares)
    frechet = evidence.values(lambda s: s.need("student_4", "frechet") / s.need("teacher_50", "frechet"))
    background = evidence.values(
        lambda s: s.need("student_4", "background_psnr_db") - s.need("teacher_50", "background_psnr_db")
    )
    lost_cover = evidence.values(lambda s: _one_sidedness(s, "student_4") - _one_sidedness(s, "teacher_50"))
    cover_error = 2**0.5 * share_error([0.5] * len(lost_cover), JUDGED_CLIPS)
    figures = (
        f"student at 4 evaluations against the teacher at 100: motion {mean(motion, error=error)} x, "
        f"Fréchet {mean(frechet)} x, background {mean(background, 1)} dB, share of one sense of motion "
        f"{mean(lost_cover, error=cover_error)} farther from a half"
    )
    parts = {
        "motion": at_least(motion, 1.0, error),
        "Fréchet": at_most(frechet, 1.0),
        "background, 2 dB allowed": at_least(background, -2.0),
        "coverage": at_most(lost_cover, 0.0, cover_error),
    }
    return Verdict(
        "4 steps are as good as 50 x 2", figures, "; ".join(f"{name}: {part}" for name, part in parts.items())
    )


def int8(evidence: Evidence) -> Verdict:
    """Quantised against not."""
    motion = evidence.values(lambda s: s.need("int8_4", "motion") - s.need("student_4", "motion"))
    frechet = evidence.values(lambda s: s.need("int8_4", "frechet") / s.need("student_4", "frechet"))
    weights = evidence.values(lambda s: s.need("int8_4", "weight_mb") / s.need("student_4", "weight_mb"))
    figures = f"motion {mean(motion, 3)}, Fréchet {mean(frechet)} x, weights {mean(weights)} x"
    free = max(map(abs, motion)) <= 0.02 and max(frechet) <= 1.05
    return Verdict("int8 weights cost no quality", figures, HOLDS if free else FAILS)


def long_video(evidence: Evidence) -> Verdict:
    """Cost and drift from the first to the last window.

    Not memory: a window of all clips is 0.2 MB of latents here, which the memory of a process does not show.
    """
    rows = [scores.record["long_video"] for scores in evidence.scores]
    cost = [_later_by_earlier([w["cpu_ms_per_clip"] for w in row["variants"]["student_4"]]) for row in rows]
    drift = [row["drift"]["student_4"] for row in rows]
    motion = [windows[-1]["motion"] for windows in drift]
    error = share_error(motion, LONG_CLIPS)
    lost = [windows[0]["background_psnr_db"] - windows[-1]["background_psnr_db"] for windows in drift]
    figures = (
        f"{len(drift[0])} windows: CPU per window, second half to first {mean(cost)} x; motion at "
        f"the end {mean(motion, error=error)}; background lost {mean(lost, 1)} dB; memory not measured"
    )
    steady = at_most(cost, 1.1)
    kept = all_of(at_least(motion, 0.85, error), at_most(lost, 6.0))
    return Verdict("long videos at constant cost and quality", figures, f"cost: {steady}; quality: {kept}")


def shared_base(evidence: Evidence) -> Verdict:
    """Weights, gradients and optimizer states of the two networks that DMD2 trains, by calculation."""
    parts, smaller = [], True
    for label, path in (("demo", Path(evidence.config)), ("13B, on 64 GPUs", PAPER_CONFIG)):
        config = load_config(path)
        lora, full = (_dmd2_gb(config, fake) for fake in ("lora", "full"))
        parts.append(f"{label}: {lora:.3g} GB a worker against {full:.3g}, {lora / full:.2f} x")
        smaller &= lora < full
    verdict = "holds, by calculation" if smaller else "does not hold, by calculation"
    return Verdict("LoRA on the shared base saves memory", "; ".join(parts) + " (states)", verdict)


JUDGED = {f.__name__: f for f in (steps, int8, long_video)}  # by the runs of the table
CLAIMS = JUDGED | {f.__name__: f for f in (shared_base, weak_shift, guidance_tokens, i2v_faster)}
CALCULATED = ("shared_base",)  # without a run: no seeds


def _one_sidedness(scores: Scores, variant: str) -> float:
    """How far the share of clips that move in one of the two valid senses is from a half."""
    return abs(scores.need(variant, "mode_share") - 0.5)


def _dmd2_gb(config: PipelineConfig, fake: str) -> float:
    dmd2 = config.distill_dmd2.model_copy(update={"fake_score": fake})
    sizes = InputSizes.of(config)
    inputs = (sizes.channels, sizes.text_width, sizes.pooled_width)
    return state_bytes(dmd2, config.model, num_parameters(config.model, *inputs, True, True)) / 2**30


def _later_by_earlier(values: Sequence[float]) -> float:
    middle = len(values) // 2
    return statistics.median(values[middle:]) / statistics.median(values[:middle])


def main() -> None:
    """Makes what is missing, prints and stores the verdicts."""
    settle()
    parser = parser_of_seeds(__doc__)
    parser.add_argument("--claims", nargs="+", choices=CLAIMS, default=[*JUDGED, "shared_base"])
    parser.add_argument("--write-docs", action="store_true", help="also put the verdicts into docs/results.md")
    arguments = parser.parse_args()
    workspace = arguments.workspace.resolve()
    judged = arguments.seeds if JUDGED.keys() & set(arguments.claims) else []
    scores = [run_seed(arguments.config, (f"seed={seed}", *STEPS), workspace / f"seed{seed}") for seed in judged]
    evidence = Evidence(arguments.config, workspace, arguments.seeds, scores)
    known = _stored(RESULTS / "paper_claims.json")
    for name in arguments.claims:
        seeds = [] if name in CALCULATED else list(arguments.seeds)
        known[name] = asdict(CLAIMS[name](evidence)) | {"seeds": seeds, "made_with": made_with()}
        store_results("paper_claims", _table(known), **known)
    text = _table(known)
    print("\n" + text)
    if arguments.write_docs:
        write_section("claims", text)


def _stored(file: Path) -> dict[str, Any]:
    """The claims that were judged before, each with what it was made with: that may differ from claim to claim."""
    stored = json.loads(file.read_text()) if file.is_file() else {}
    return {name: stored[name] for name in CLAIMS if name in stored}


def _table(known: Mapping[str, Mapping[str, Any]]) -> str:
    """The claims in their order, then the tables that some of them have."""
    lines = ["| claim | figures | seeds | verdict |", "|---|---|--:|---|"]
    rows = [known[name] for name in CLAIMS if name in known]
    lines += [f"| {r['claim']} | {r['figures']} | {len(r['seeds']) or '-'} | {r['verdict']} |" for r in rows]
    return "\n\n".join(["\n".join(lines), *(r["details"] for r in rows if r.get("details"))])


if __name__ == "__main__":
    main()
