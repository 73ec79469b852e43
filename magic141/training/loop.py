"""The training loop of a worker, the same for every objective: resume, step, log, validate, checkpoint, export."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from magic141.errors import UserError
from magic141.publication import written_aside
from magic141.training.checkpoint import (
    CheckpointInfo,
    CheckpointStore,
    read_checkpoint,
    write_checkpoint,
)
from magic141.training.config import TrainConfig
from magic141.training.objective import Objective, ObjectiveSpec, TrainContext, sum_over_workers
from magic141.training.progress import ProgressWriter
from magic141.training.random_numbers import random_state, seed_everything, set_random_state

EXPORT = "export"


@dataclass(frozen=True)
class LoopResult:
    """The resources that a finished loop used.

    Attributes:
        seconds: wall time inside the workers (not their start-up), over all attempts that led to the result.
        cpu_seconds: CPU time, summed over workers and attempts.
        peak_memory_mb: largest allocation on the GPU, or largest resident memory, of each worker, summed over workers.
        resumed_from_step: where the last attempt began; 0 is the start.
    """

    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    resumed_from_step: int


def run_training(
    spec: ObjectiveSpec, config: TrainConfig, context: TrainContext, store: CheckpointStore, launch_id: str
) -> LoopResult:
    """Train `spec` for config.num_steps on this worker and export; called on every worker."""
    usage = _Usage()
    seed_everything(context.seed, context.rank)
    objective = spec.build(context)
    with store.latest() as folder:
        info = read_checkpoint(folder, objective, context) if folder else None
        barrier(context)  # no worker goes on before all have read: the folder may be temporary
    start = info.step if info else 0
    usage.add(info)
    writer = ProgressWriter(context.run_dir, launch_id, start) if context.is_main else None
    _steps(objective, config, context, store, writer, start, usage)
    _export(objective, context)
    return usage.result(context, start)


def _steps(
    objective: Objective,
    config: TrainConfig,
    context: TrainContext,
    store: CheckpointStore,
    writer: ProgressWriter | None,
    start: int,
    usage: _Usage,
) -> None:
    """Runs steps start to num_steps - 1; logs and checkpoints are numbered by finished steps, `done`."""
    meter, skipped = _Meter(), _SkippedSteps(config.max_skipped_steps)
    for step in range(start, config.num_steps):
        values = objective.step(step)
        done = step + 1
        if not skipped.record(values, done):
            meter.add(values)
        last = done == config.num_steps
        save = last or done % config.checkpoint_every_steps == 0
        check = last or done % config.validate_every_steps == 0
        if save or check or done % config.placement.log_every_steps == 0:
            values = meter.mean(context)
            _require_finite(values, done)
            if check:
                values |= _validate(objective, context)
            if writer:
                writer.metrics(done, values)
            if check:
                objective.judge(done, values)
        elif writer:
            writer.heartbeat(done)
        if save:
            _save(objective, context, store, usage, done)


def _validate(objective: Objective, context: TrainContext) -> dict[str, float]:
    """Validation metrics averaged over workers; leaves the random state as it was."""
    state = random_state()
    meter = _Meter()
    meter.add(objective.validate())
    set_random_state(state)
    return meter.mean(context)


def _save(objective: Objective, context: TrainContext, store: CheckpointStore, usage: _Usage, done: int) -> None:
    seconds, cpu_seconds = usage.so_far(context)
    placement = context.placement
    info = CheckpointInfo(done, placement.engine, context.world_size, placement.zero_stage, seconds, cpu_seconds)
    store.save(done, lambda folder: write_checkpoint(folder, objective, context, info))


def _export(objective: Objective, context: TrainContext) -> None:
    """Writes the artifact's folders to run_dir/export, which exists only when complete."""
    target = context.run_dir / EXPORT
    if context.is_main:
        with written_aside(target) as folder:
            objective.export(folder)
    else:
        objective.export(target)
    barrier(context)


def _require_finite(values: Mapping[str, Tensor | float], step: int) -> None:
    for name, figure in values.items():
        value = float(torch.as_tensor(figure).detach())
        if not math.isfinite(value):
            raise UserError(
                f"{name} = {value} at step {step}: training diverged; lower optimizer.learning_rate or "
                "optimizer.max_grad_norm, or use precision = fp32: with another value the stage starts over"
            )


def barrier(context: TrainContext) -> None:
    """Wait for all workers."""
    if context.world_size > 1:
        dist.barrier()


@dataclass
class _SkippedSteps:
    """Counts steps skipped in a row for a non-finite gradient: on all workers alike, as the gradient is averaged."""

    max_in_a_row: int
    num_in_a_row: int = 0

    def record(self, values: Mapping[str, Tensor | float], step: int) -> bool:
        """Whether a network skipped its update in this step; raises UserError after too many in a row."""
        if all(math.isfinite(norm) for name, norm in values.items() if name.endswith("grad_norm")):
            self.num_in_a_row = 0
            return False
        self.num_in_a_row += 1
        if self.num_in_a_row > self.max_in_a_row:
            _require_finite(values, step)
        return True


@dataclass
class _Meter:
    """Means of scalars since the last call of `mean`, without waiting for the device at every step."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            number = torch.as_tensor(value).detach().double()
            self.sums[name] = self.sums[name] + number if name in self.sums else number
        self.count += 1

    def mean(self, context: TrainContext) -> dict[str, float]:
        """Means over steps and workers; then resets."""
        names = sorted(self.sums)
        if not names:
            return {}
        stacked = torch.stack([self.sums[name].to(context.device) for name in names])
        means = sum_over_workers(stacked, context) / (self.count * context.world_size)
        self.sums, self.count = {}, 0
        return dict(zip(names, means.tolist(), strict=True))


class _Usage:
    """Wall time, CPU time and memory of a worker since its start, plus the times of earlier attempts."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._earlier_seconds = self._earlier_cpu_seconds = 0.0

    def add(self, info: CheckpointInfo | None) -> None:
        """Include the attempts that led to a checkpoint."""
        if info:
            self._earlier_seconds, self._earlier_cpu_seconds = info.seconds, info.cpu_seconds

    def so_far(self, context: TrainContext) -> tuple[float, float]:
        """Wall seconds and CPU seconds over all workers."""
        cpu = torch.tensor([time.process_time() - self._cpu], dtype=torch.float64)
        seconds = self._earlier_seconds + time.perf_counter() - self._wall
        return seconds, self._earlier_cpu_seconds + float(sum_over_workers(cpu, context))

    def result(self, context: TrainContext, start: int) -> LoopResult:
        """The totals of the finished run."""
        seconds, cpu_seconds = self.so_far(context)
        peak = torch.tensor([_peak_memory_mb(context.device)], dtype=torch.float64)
        return LoopResult(seconds, cpu_seconds, float(sum_over_workers(peak, context)), start)


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
