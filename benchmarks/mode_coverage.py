"""What the collapse watch's share of modes says of sound clips and of spoilt ones, beside its other figures.

    python benchmarks/mode_coverage.py --workspace runs --write-docs

Needs a finished run of the config up to `distill_cfg`. All clips are of the validation split, 64 conditions and two
seeds, compared with the teacher's at the watch's own number of steps. About 2 minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from documents import store_results, write_section
from finished import config_in, finished
from torch import Tensor

from magic141.config import PipelineConfig
from magic141.data.dataset import ClipDataset, load_null_text
from magic141.diffusion.flow import sigma_grid
from magic141.diffusion.samplers import randn_like, sample
from magic141.models.config import Sampler
from magic141.models.transformer import load_transformer, velocity
from magic141.training.batches import Batch, BatchMaker
from magic141.training.dmd2.clip_metrics import PREFIX, compare
from magic141.training.random_numbers import step_generator

SEEDS, OTHER_SEEDS = (1, 2), (3, 4)
COLUMNS = ("mode_coverage", "diversity_ratio", "motion_ratio", "variance_ratio", "mean_drift")


if TYPE_CHECKING:
    from diffusers import HunyuanVideoTransformer3DModel


@dataclass(frozen=True)
class Bench:
    """The validation clips' conditions, and how the config samples."""

    config: PipelineConfig
    batch: Batch

    @classmethod
    def open(cls, config: PipelineConfig, data: Path) -> Bench:
        """Reads as many conditions as the watch does."""
        frames = (config.model.window_frames - 1) // config.temporal_factor + 1
        maker = BatchMaker(ClipDataset.open(data, "validation"), load_null_text(data), frames, image_condition=True)
        rows = torch.arange(config.distill_dmd2.collapse.num_clips)
        return cls(config, maker.make(rows, step_generator(config.seed, 0)))

    def sample(
        self,
        model: HunyuanVideoTransformer3DModel,
        num_steps: int,
        sampler: Sampler = "euler",
        w: float | None = None,
        seeds: tuple[int, ...] = SEEDS,
    ) -> Tensor:
        """Latents [S, N, C, T, h, w]; seeds of the same number start from the same noise, whatever the sampler."""
        guidance = None if w is None else torch.full((len(self.batch.x0),), w)

        def predict(x_t: Tensor, sigma: Tensor) -> Tensor:
            return velocity(model, x_t, sigma, self.batch.cond, self.batch.prefix, guidance)

        sigmas, clips = sigma_grid(num_steps, self.config.distill_dmd2.shift), []
        for seed in seeds:
            rng = step_generator(self.config.seed, seed)
            clips.append(sample(predict, randn_like(self.batch.x0, rng), sigmas, sampler, rng))
        return torch.stack(clips)


def rows(config: PipelineConfig, made: dict[str, Path]) -> Iterator[tuple[str, dict[str, float]]]:
    """Every row with its figures."""
    bench = Bench.open(config, made["prepare_data"])
    teacher, cfg = (load_transformer(made[s] / "transformer").eval() for s in ("pretrain_i2v", "distill_cfg"))
    dmd2 = config.distill_dmd2
    w, steps = dmd2.student_guidance_scale, dmd2.collapse.reference_steps
    reference = bench.sample(teacher, steps)
    yield "the teacher's, other noise", compare(other := bench.sample(teacher, steps, seeds=OTHER_SEEDS), reference)
    for sampler in ("euler", "renoise"):
        for few in (4, 1):
            clips = bench.sample(cfg, few, sampler, w)
            yield f"the CFG-distilled model's, {sampler}, steps: {few}", compare(clips, reference)
    yield "the teacher's, one draw for both seeds", compare(other[:1].expand_as(other), reference)
    grain = 0.3 * other.std() * torch.randn(other.shape, generator=step_generator(config.seed, 5))
    yield "the teacher's, with noise of 0.3 standard deviations", compare(other + grain, reference)
    yield "the teacher's, 1.3 times the contrast", compare(1.3 * other, reference)
    yield "the teacher's, of other captions and first frames", compare(reference.roll(1, dims=1), reference)
    yield "the first frame, standing still", compare(reference[:, :, :, :1].expand_as(reference), reference)


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| clips | " + " | ".join(f"`{name}`" for name in COLUMNS) + " |", "|---|" + "--:|" * len(COLUMNS)]
    for label, values in found.items():
        lines.append(f"| {label} | " + " | ".join(f"{values[PREFIX + name]:.2f}" for name in COLUMNS) + " |")
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--workspace", type=Path, default=Path("runs"), help="with a finished run of the config")
    parser.add_argument("--write-docs", action="store_true", help="also put the table into its document")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = config_in(arguments.config, arguments.overrides, arguments.workspace)
    found = dict(rows(config, finished(config, "distill_cfg")))
    text = table(found)
    print(text)
    store_results("mode_coverage", text, config=arguments.config, rows=found)
    if arguments.write_docs:
        write_section("coverage", text)


if __name__ == "__main__":
    main()
