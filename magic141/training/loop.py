"""The training loop of a worker, the same for every objective: resume, step, log, validate, checkpoint, export."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from magic141.artifacts.publication import written_aside
from magic141.errors import UserError
from magic141.training.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from magic141.training.checkpoint_store import CheckpointStore
from magic141.training.config import TrainConfig
from magic141.training.context import TrainContext, barrier, sum_over_workers
from magic141.training.gpu_memory import explaining_full_gpu
from magic141.training.meter import Meter
from magic141.training.objective import Objective, ObjectiveSpec
from magic141.training.progress import ProgressWriter
from magic141.training.random_numbers import kept_random_state, seed_everything

EXPORT = "export"


@dataclass(frozen=True)
class LoopResult:
    """The resources that a finished loop used.

    Attributes:
        seconds: wall time inside the workers (not their start-up), over all attempts that led to the result.
        cpu_seconds: CPU time, summed over workers and attempts.
        peak_memory_mb: largest allocation on the GPU, or largest resident memory, of each worker, summed over workers;
            of the attempt that took most.
        resumed_from_step: where the last attempt began; 0 is the start.
        num_skipped: steps in which an update was skipped for a non-finite gradient.
    """

    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    resumed_from_step: int
    num_skipped: int


def run_training(spec: ObjectiveSpec, config: TrainConfig, context: TrainContext, launch_id: str) -> LoopResult:
    """Train `spec` for config.num_steps on this worker and export; called on every worker."""
    usage = _Usage()
    seed_everything(context.seed, context.rank)
    with explaining_full_gpu(config):
        loop = _Loop(spec.build(context), config, context, CheckpointStore(context), usage)
        start = loop.resume()
        loop.run(start, ProgressWriter(context.run_dir, launch_id, start) if context.is_main else None)
        loop.export()
    return usage.result(context, start, loop.skipped.num_skipped)


@dataclass
class _Loop:
    """One worker's training.

    Attributes:
        since_check: the means that are judged. They begin at the last validation, so that how often logs and
            checkpoints are written, which is not in a stage's key, decides nothing.
    """

    objective: Objective
    config: TrainConfig
    context: TrainContext
    store: CheckpointStore
    usage: _Usage
    since_check: Meter = field(default_factory=Meter)
    skipped: _SkippedSteps = field(init=False)

    def __post_init__(self) -> None:
        self.skipped = _SkippedSteps(self.config)

    def resume(self) -> int:
        """The number of steps done by earlier attempts, whose state is put back."""
        folder = self.store.latest()
        if folder is None:
            return self.objective.first_step
        info = read_checkpoint(folder, self.objective, self.since_check, self.context)
        self.usage.add(info)
        self.skipped.num_skipped = info.num_skipped
        return info.step

    def run(self, start: int, writer: ProgressWriter | None) -> None:
        """Runs steps start to num_steps - 1; logs and checkpoints are numbered by finished steps, `done`."""
        config, since_log = self.config, Meter()
        self.objective.require_sound()
        self.prepare(start, writer)
        if start <= 0 and (figures := self._averaged(self.objective.begin)) and writer:
            writer.metrics(0, figures)
        for step in range(max(start, 0), config.num_steps):
            values = self.objective.step(step)
            done = step + 1
            if not self.skipped.record(values, done):
                since_log.add(values)
                self.since_check.add(values)
            last = done == config.num_steps
            save = last or done % config.checkpoint_every_steps == 0
            check = last or done % config.validate_every_steps == 0
            if save or check or done % config.placement.log_every_steps == 0:
                means = since_log.mean(self.context)
                _require_finite(means, done, self.config)
                found = self._averaged(self.objective.validate) if check else {}
                if writer:
                    writer.metrics(done, means | found | self.skipped.figures)
                if check:
                    self.objective.judge(done, self.since_check.mean(self.context) | found)
            elif writer:
                writer.heartbeat(done)
            if save:
                self._save(done)
            if check:
                self.objective.require_sound()

    def prepare(self, start: int, writer: ProgressWriter | None) -> None:
        """Runs the steps before 0, which are not logged, but show that training lives and can go on after a crash."""
        for step in range(start, 0):
            done = step + 1
            self.skipped.record(self.objective.step(step), done)
            if writer:
                writer.heartbeat(done)
            if done % self.config.checkpoint_every_steps == 0:
                self._save(done)

    def export(self) -> None:
        """Writes the artifact's folders to run_dir/export, which exists only when complete."""
        target = self.context.run_dir / EXPORT
        if self.context.is_main:
            with written_aside(target) as folder:
                self.objective.export(folder)
        else:
            self.objective.export(target)
        barrier(self.context)

    def _averaged(self, validate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Validation metrics averaged over workers; leaves the random state as it was."""
        meter = Meter()
        with kept_random_state():
            meter.add(validate())
        return meter.mean(self.context)

    def _save(self, done: int) -> None:
        context, place = self.context, self.context.placement
        seconds, cpu_seconds = self.usage.so_far(context)
        peak_memory_mb = self.usage.peak_memory_mb(context)
        info = CheckpointInfo(
            step=done,
            engine=place.engine,
            world_size=context.world_size,
            zero_stage=place.zero_stage,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            peak_memory_mb=peak_memory_mb,
            num_skipped=self.skipped.num_skipped,
        )
        self.store.save(done, lambda aside: write_checkpoint(aside, self.objective, self.since_check, context, info))
        barrier(context)  # a worker that ended now, for a collapse, would end the others while they save


def _require_finite(values: Mapping[str, Tensor | float], step: int, config: TrainConfig) -> None:
    for name, figure in values.items():
        value = float(torch.as_tensor(figure).detach())
        if not math.isfinite(value):
            optimizer = "fake_optimizer" if name.startswith("fake") else "optimizer"
            precision = "" if config.precision == "fp32" else ", or use precision = fp32"
            raise UserError(
                f"{name} = {value} at step {step}: training diverged; lower {optimizer}.learning_rate or "
                f"{optimizer}.max_grad_norm{precision}; any of these changes starts the stage over"
            )


@dataclass
class _SkippedSteps:
    """Counts steps in which an update was skipped for a non-finite gradient, which all workers share."""

    config: TrainConfig
    num_in_a_row: int = 0
    num_skipped: int = 0

    @property
    def figures(self) -> dict[str, float]:
        """Their number as a curve, once there are any: the steps themselves are not among the logged means."""
        return {"skipped_steps": float(self.num_skipped)} if self.num_skipped else {}

    def record(self, values: Mapping[str, Tensor | float], step: int) -> bool:
        """Whether a network skipped its update in this step; raises UserError after too many in a row."""
        if all(math.isfinite(norm) for name, norm in values.items() if name.endswith("grad_norm")):
            self.num_in_a_row = 0
            return False
        self.num_in_a_row += 1
        self.num_skipped += 1
        if self.num_in_a_row > self.config.max_skipped_steps:
            _require_finite(values, step, self.config)
        return True


class _Usage:
    """Wall time, CPU time and memory of a worker since its start, with those of earlier attempts."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._earlier_seconds = self._earlier_cpu_seconds = self._earlier_peak_mb = 0.0
        if torch.cuda.is_initialized():  # by an earlier stage in this process
            torch.cuda.reset_peak_memory_stats()

    def add(self, info: CheckpointInfo) -> None:
        """Include the attempts that led to a checkpoint."""
        self._earlier_seconds, self._earlier_cpu_seconds = info.seconds, info.cpu_seconds
        self._earlier_peak_mb = info.peak_memory_mb

    def so_far(self, context: TrainContext) -> tuple[float, float]:
        """Wall seconds and CPU seconds over all workers."""
        cpu = torch.tensor([time.process_time() - self._cpu], dtype=torch.float64)
        seconds = self._earlier_seconds + time.perf_counter() - self._wall
        return seconds, self._earlier_cpu_seconds + float(sum_over_workers(cpu, context))

    def peak_memory_mb(self, context: TrainContext) -> float:
        """MiB over all workers: now, or in an earlier attempt, if that took more."""
        peak = torch.tensor([_peak_memory_mb(context.device)], dtype=torch.float64)
        return max(self._earlier_peak_mb, float(sum_over_workers(peak, context)))

    def result(self, context: TrainContext, start: int, num_skipped: int) -> LoopResult:
        """The totals of the finished run."""
        seconds, cpu_seconds = self.so_far(context)
        return LoopResult(seconds, cpu_seconds, self.peak_memory_mb(context), max(start, 0), num_skipped)


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
