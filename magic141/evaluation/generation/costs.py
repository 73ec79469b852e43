"""What a variant's clips cost: time, memory, latency; measured piece by piece, and put together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from magic141.evaluation.generation.performance import Usage, measure
from magic141.evaluation.generation.suite import Conditions
from magic141.evaluation.generation.tensor_memory import TensorMemory
from magic141.evaluation.variants import Variant
from magic141.models.generator import VideoGenerator
from magic141.models.size import weight_megabytes

LATENCY_BUDGET_S = 2.0
MAX_LATENCY_CLIPS = 9


@dataclass(frozen=True)
class Costs:
    """What it took to sample some of a variant's clips.

    Attributes:
        num_clips: their number.
        cpu_s: CPU seconds of all threads.
        wall_s: elapsed seconds.
        weight_mb: MiB of the network.
        added_memory_mb: MiB beside it at the peak; None on a CPU, except where `latency_s` is measured, too.
        latency_s: seconds for one clip alone; measured with the first clips only.
        device: name of the GPU, or "cpu".
        precision: dtype of the weights.
    """

    num_clips: int
    cpu_s: float
    wall_s: float
    weight_mb: float
    added_memory_mb: float | None
    latency_s: float | None
    device: str
    precision: str


def costs_of(generator: VideoGenerator, usage: Usage, conditions: Conditions, num_clips: int, is_first: bool) -> Costs:
    """The costs of sampling `num_clips`, as measured in `usage`; with those of a batch and of one clip if `is_first`.

    Args:
        generator: the network with the variant's settings.
        usage: what sampling took.
        conditions: those of one batch, on the device.
        num_clips: number of clips that were sampled.
        is_first: whether the variant's first clips are among them.
    """
    device, added_mb = conditions.prefix.device, usage.added_memory_mb
    if is_first and added_mb is None:
        added_mb = tensors_mb(generator, conditions)
    return Costs(
        num_clips=num_clips,
        cpu_s=usage.cpu_s,
        wall_s=usage.wall_s,
        weight_mb=weight_megabytes(generator.model),
        added_memory_mb=added_mb,
        latency_s=latency_s(generator, conditions.part(slice(1))) if is_first else None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=str(next(generator.model.parameters()).dtype).removeprefix("torch."),
    )


def variant_record(variant: Variant, measured: Sequence[Costs]) -> dict[str, Any]:
    """A variant's entry of variants.json, from the costs of all its clips; the first ones come first."""
    first, num_clips = measured[0], sum(costs.num_clips for costs in measured)
    assert first.latency_s is not None
    return {
        **asdict(variant),
        "nfe": variant.num_evaluations,
        "num_clips": num_clips,
        "cpu_ms_per_clip": 1000 * sum(costs.cpu_s for costs in measured) / num_clips,
        "wall_ms_per_clip": 1000 * sum(costs.wall_s for costs in measured) / num_clips,
        "latency_ms": 1000 * first.latency_s,
        "peak_memory_mb": first.weight_mb + max(costs.added_memory_mb or 0.0 for costs in measured),
        "weight_mb": first.weight_mb,
        "device": " + ".join(sorted({costs.device for costs in measured})),
        "precision": first.precision,
    }


def tensors_mb(generator: VideoGenerator, batch: Conditions) -> float:
    """MiB of the tensors that sampling a batch makes, counted in a run that is not timed."""
    repeated = generator.in_steps(min(generator.settings.num_steps, 2))  # later steps hold what the second does
    memory = TensorMemory()
    with memory:
        repeated.sample(batch.text, batch.image_tokens, batch.prefix, seed=0)
    return memory.peak_mb


def latency_s(generator: VideoGenerator, one: Conditions) -> float:
    """Seconds for one clip alone, after a warm-up of one step; the median of several where they are short."""
    generator.in_steps(1).sample(one.text, one.image_tokens, one.prefix, seed=0)
    taken: list[float] = []
    while not taken or (sum(taken) < LATENCY_BUDGET_S and len(taken) < MAX_LATENCY_CLIPS):
        with measure() as usage:
            generator.sample(one.text, one.image_tokens, one.prefix, seed=0)
        taken.append(usage.wall_s)
    return statistics.median(taken)
