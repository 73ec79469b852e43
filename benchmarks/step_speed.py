"""Where the CPU time of a training step, of a DMD2 iteration and of the sampler goes.

    python benchmarks/step_speed.py --workspace runs

Needs a workspace with a finished demo up to `distill_cfg`. One thread, one worker's share of the batch. What is neither
forward, backward nor optimizer (batches, noise, averages, copies, Python) is the overhead. The I2V step is measured
with torch's own Muon, too, matrix by matrix in bfloat16, which the batched one replaced.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from documents import store_results, write_section
from environment import machine
from finished import config_in, finished
from torch import nn

from magic141.config import PipelineConfig
from magic141.data.dataset import ClipDataset, load_null_text
from magic141.evaluation.generation.suite import clip_conditions
from magic141.evaluation.variants import student_variant
from magic141.models.frames import num_latent_frames
from magic141.models.transformer import load_transformer
from magic141.training.config import PlacementConfig, TrainConfig
from magic141.training.context import TrainContext
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.flow_matching import FlowMatchingSpec
from magic141.training.objective import Objective, ObjectiveSpec

NUM_WARM, NUM_TIMED, NUM_CLIPS = 5, 30, 8


@dataclass(frozen=True)
class Speed:
    """CPU milliseconds of one step and of its parts."""

    what: str
    total_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float

    @property
    def overhead(self) -> float:
        """Share of what is none of the three."""
        return 1 - (self.forward_ms + self.backward_ms + self.optimizer_ms) / self.total_ms


class Clock:
    """Adds up the CPU time spent inside wrapped calls; calls inside calls count once, for the outer one."""

    def __init__(self) -> None:
        """Nothing spent yet."""
        self.spent: dict[str, float] = defaultdict(float)
        self._inside = False

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Replaces `owner.name` by itself, timed."""
        call: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside, start = True, time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self._inside = False
                self.spent[part] += time.process_time() - start

        setattr(owner, name, timed)


def training_speed(what: str, spec: ObjectiveSpec, config: TrainConfig, clock: Clock) -> Speed:
    """One worker's steps of a training stage."""
    context = TrainContext(0, 1, torch.device("cpu"), Path("."), 0, config.placement)
    objective: Objective = spec.build(context)
    for engine in objective.engines.values():
        clock.wrap(engine, "backward", "backward")
        clock.wrap(engine, "step", "optimizer")
    return measure(what, objective.step, clock)


def torchs_muon(matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, num_workers: int) -> torch.optim.Muon:
    """The optimizer that `BatchedMuon` stands in for, where one worker has all the work."""
    assert num_workers == 1
    return torch.optim.Muon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")


def measure(what: str, step: Callable[[int], Any], clock: Clock) -> Speed:
    """Means over the timed steps."""
    for number in range(NUM_WARM):
        step(number)
    clock.spent.clear()
    start = time.process_time()
    for number in range(NUM_TIMED):
        step(NUM_WARM + number)
    total = (time.process_time() - start) / NUM_TIMED * 1e3
    parts = (clock.spent[part] / NUM_TIMED * 1e3 for part in ("forward", "backward", "optimizer"))
    return Speed(what, total, *parts)


def one_worker(config: TrainConfig) -> Any:
    """The stage's config for one worker with its share of the batch."""
    batch = config.clips_per_worker
    placement = PlacementConfig(engine="plain", launcher="local", num_workers=1)
    return config.model_copy(update={"batch_size": batch, "placement": placement})


def speeds(config: PipelineConfig, folders: dict[str, Path]) -> list[Speed]:
    """I2V step, DMD2 iteration, sampler."""
    from diffusers import HunyuanVideoTransformer3DModel  # after magic141, with which torchvision can be imported

    data, teacher, student = folders["prepare_data"], folders["pretrain_i2v"], folders["distill_cfg"]
    clock = Clock()
    clock.wrap(HunyuanVideoTransformer3DModel, "forward", "forward")
    i2v, dmd2 = one_worker(config.pretrain_i2v), one_worker(config.distill_dmd2)
    t2v = folders["pretrain_t2v"] / "transformer"
    i2v_spec = FlowMatchingSpec(i2v, config.model, data, t2v, image_condition=True)
    with patch("magic141.training.engines.optimizers.BatchedMuon", torchs_muon):
        before = training_speed("I2V step with torch's Muon", i2v_spec, i2v, clock)
    return [
        before,
        training_speed("I2V step", i2v_spec, i2v, clock),
        training_speed(
            "DMD2 iteration",
            Dmd2Spec(dmd2, config.model, data, teacher / "transformer", student / "transformer"),
            dmd2,
            clock,
        ),
        measure("sampler, 4 steps, 8 clips", sampler(config, data, student), clock),
    ]


def sampler(config: PipelineConfig, data: Path, student: Path) -> Callable[[int], Any]:
    """One window for a batch of held-out clips by the few-step chain."""
    clips = clip_conditions(ClipDataset.open(data, "heldout"), range(NUM_CLIPS))
    latent_frames = num_latent_frames(config.model.window_frames, config.temporal_factor)
    network = load_transformer(student / "transformer").eval()
    generator = student_variant(config.distill_dmd2).generator(network, load_null_text(data), latent_frames)
    return lambda seed: generator.sample(clips.text, clips.image_tokens, clips.prefix, seed)


def table(found: list[Speed]) -> str:
    """Markdown."""
    lines = ["| CPU ms | total | forward | backward | optimizer | rest |", "|---|--:|--:|--:|--:|--:|"]
    for speed in found:
        parts = (speed.total_ms, speed.forward_ms, speed.backward_ms, speed.optimizer_ms)
        lines.append(f"| {speed.what} | {' | '.join(f'{ms:.1f}' for ms in parts)} | {speed.overhead:.0%} |")
    return "\n".join([f"{machine()}, one thread:", "", *lines])


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--workspace", type=Path, default=Path("runs"), help="with a finished run of the config")
    parser.add_argument("--write-docs", action="store_true", help="also put the table into its document")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = config_in(arguments.config, (), arguments.workspace)
    found = speeds(config, finished(config, "distill_cfg"))
    text = table(found)
    print(text)
    store_results("step_speed", text, config=arguments.config, speeds=[asdict(speed) for speed in found])
    if arguments.write_docs:
        write_section("speed", text)


if __name__ == "__main__":
    main()
