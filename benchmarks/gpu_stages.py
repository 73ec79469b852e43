"""Memory and time of the training stages at the 13B's width and sequence length, beside what `plan` calculates.

    python benchmarks/gpu_stages.py                                       # one GPU, ten minutes
    python benchmarks/gpu_stages.py --until pretrain_i2v --workspace DIR  # goes on from there when given again

Runs `configs/smoke_13b.yaml`, the stages as on a cluster (Ray Train, DeepSpeed) with a tenth of the blocks, in a
workspace of its own, and reads what they recorded.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from documents import store_results
from environment import machine, settle
from finished import config_in, finished, run_pipeline

from flows.planning.estimates import GPU_OPERATIONS_PER_S, InputSizes, calculated_gib
from magic141.config import PipelineConfig
from magic141.config.checks import TRAINING_SECTIONS
from magic141.tracking import Tracker
from magic141.tracking.tags import TAG_STAGE
from magic141.training.operations import num_operations, passes_per_update


@dataclass(frozen=True)
class Row:
    """A stage on its worker: GiB at the peak and seconds of an update, by calculation and as measured."""

    stage: str
    calculated_gib: float
    measured_gib: float
    calculated_s: float
    measured_s: float | None
    minutes: float


def row(stage: str, config: PipelineConfig, folder: Path, speeds: list[float]) -> Row:
    """`speeds` are updates a second, of each update: the first warms up and the last contains a validation."""
    training: Any = getattr(config, stage)
    record = json.loads((folder / "training.json").read_text())
    tokens = InputSizes.of(config).num_tokens(config, config.data.sizes, image_condition=stage != "pretrain_t2v")
    between = speeds[1:-1]
    operations = num_operations(passes_per_update(training) * training.batch_size, config.model, tokens)
    return Row(
        stage,
        calculated_gib(stage, config, training),
        record["peak_memory_mb"] / training.placement.num_workers / 1024,
        operations / training.placement.num_workers / GPU_OPERATIONS_PER_S,
        statistics.mean(1 / speed for speed in between) if between else None,
        record["seconds"] / 60,
    )


def rows(config: PipelineConfig, until: str) -> list[Row]:
    """Of the training stages that are finished, from their artifacts and the curves of their runs."""
    tracker, found = Tracker(config.home, config.experiment), []
    for stage, folder in finished(config, until).items():
        if stage in TRAINING_SECTIONS:
            run = tracker.search(f"tags.`{TAG_STAGE}` = '{stage}' and attributes.status = 'FINISHED'", limit=1)[0]
            points = tracker.client.get_metric_history(run.info.run_id, "steps_per_s")
            found.append(row(stage, config, folder, [point.value for point in points]))
    return found


def table(config: PipelineConfig, found: list[Row]) -> str:
    """Markdown."""
    tokens = InputSizes.of(config).num_tokens(config, config.data.sizes, image_condition=True)
    where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else machine()
    model = config.model
    head = (
        f"`{config.name}`: width {model.num_attention_heads * model.attention_head_dim}, {model.num_layers} + "
        f"{model.num_single_layers} blocks, {tokens:,} tokens, {where}, torch {torch.__version__}:"
    )
    columns = "| stage | GiB calculated | measured | s an update calculated | measured | minutes in all |"
    lines = [head, "", columns, "|---|--:|--:|--:|--:|--:|"]
    for r in found:
        figures = (r.calculated_gib, r.measured_gib, r.calculated_s, r.measured_s, r.minutes)
        lines.append(f"| `{r.stage}` | {' | '.join('-' if f is None else f'{f:.1f}' for f in figures)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs, reads, prints and stores."""
    settle()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/smoke_13b.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--until", default="distill_dmd2", choices=TRAINING_SECTIONS)
    parser.add_argument("--workspace", type=Path, default=Path("runs-gpu"))
    arguments = parser.parse_args()
    home = arguments.workspace.resolve()
    run_pipeline(arguments.config, arguments.overrides, home, arguments.until)
    config = config_in(arguments.config, arguments.overrides, home)
    found = rows(config, arguments.until)
    text = table(config, found)
    print(text)
    store_results("gpu_stages", text, stages=[asdict(one) for one in found])


if __name__ == "__main__":
    main()
