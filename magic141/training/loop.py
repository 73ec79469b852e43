"""The training loop of a worker, the same for every objective: resume, step, log, validate, checkpoint, export."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from magic141.artifacts.publication import written_aside
from magic141.errors import UserError
from magic141.training.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from magic141.training.checkpoint_store import CheckpointStore
from magic141.training.config import TrainConfig
from magic141.training.context import TrainContext, barrier
from magic141.training.gpu_memory import explaining_full_gpu
from magic141.training.interruption import Interruptions, Notice, no_notice
from magic141.training.meter import Meter
from magic141.training.objective import Objective
from magic141.training.progress import ProgressWriter
from magic141.training.random_numbers import kept_random_state, seed_everything
from magic141.training.usage import Usage, Used
from magic141.training.worker_task import WorkerTask

EXPORT = "export"


@dataclass(frozen=True)
class LoopResult(Used):
    """What a finished loop used, and how it went.

    Attributes:
        resumed_from_step: where the last attempt began; 0 is the start.
        num_skipped: steps in which an update was skipped for a non-finite gradient.
    """

    resumed_from_step: int
    num_skipped: int


def run_training(task: WorkerTask, context: TrainContext, notice: Notice = no_notice) -> LoopResult:
    """Train the task's objective for config.num_steps on this worker and export; called on every worker.

    Raises:
        UserError: the training diverged or collapsed, or the launch was asked to stop; on all workers alike.
    """
    usage = Usage()
    seed_everything(context.seed, context.share)
    with explaining_full_gpu(task.config):
        interruptions = Interruptions(task, context, notice)
        loop = _Loop(task.spec.build(context), task.config, context, CheckpointStore(context), usage, interruptions)
        start = loop.resume()
        loop.run(start, ProgressWriter(context.run_dir, task.launch_id, start) if context.is_main else None)
        loop.export()
    used = asdict(usage.so_far(context))
    return LoopResult(**used, resumed_from_step=max(start, 0), num_skipped=loop.skipped.num_skipped)


@dataclass
class _Loop:
    """One worker's training.

    Attributes:
        since_log: the means that are logged next.
        since_check: the means that are judged. They begin at the last validation, so that how often logs and
            checkpoints are written, which is not in a stage's key, decides nothing.
    """

    objective: Objective
    config: TrainConfig
    context: TrainContext
    store: CheckpointStore
    usage: Usage
    interruptions: Interruptions
    since_log: Meter = field(default_factory=Meter)
    since_check: Meter = field(default_factory=Meter)
    skipped: _SkippedSteps = field(init=False)

    def __post_init__(self) -> None:
        self.skipped = _SkippedSteps(self.config)

    def resume(self) -> int:
        """The number of steps done by earlier attempts, whose state is put back."""
        folder = self.store.latest()
        if folder is None:
            return self.objective.first_step
        info = read_checkpoint(folder, self.objective, self._meters, self.context)
        self.usage.add(info)
        self.skipped.num_skipped = info.num_skipped
        return info.step

    def run(self, start: int, writer: ProgressWriter | None) -> None:
        """Runs steps start to num_steps - 1; logs and checkpoints are numbered by finished steps, `done`."""
        config = self.config
        self.objective.require_sound()
        self.prepare(start, writer)
        if start <= 0 and (figures := self._averaged(self.objective.begin)) and writer:
            writer.metrics(0, figures)
        for step in range(max(start, 0), config.num_steps):
            values = self.objective.step(step)
            done = step + 1
            if not self.skipped.record(values, done):
                for meter in self._meters:
                    meter.add(values)
            last = done == config.num_steps
            save = last or done % config.checkpoint_every_steps == 0
            check = last or done % config.validate_every_steps == 0
            if save or check or done % config.placement.log_every_steps == 0:
                self._log(done, check, writer)
            elif writer:
                writer.heartbeat(done)
            if save:
                self._save(done)
            if check:
                self.objective.require_sound()
            if not last:
                self._heed_interruptions(done, is_saved=save)

    def prepare(self, start: int, writer: ProgressWriter | None) -> None:
        """Runs the steps before 0, which are not logged, but show that training lives and can go on after a crash."""
        for step in range(start, 0):
            done = step + 1
            self.skipped.record(self.objective.step(step), done)
            if writer:
                writer.heartbeat(done)
            save = done % self.config.checkpoint_every_steps == 0
            if save:
                self._save(done)
            self._heed_interruptions(done, is_saved=save)

    def _log(self, done: int, check: bool, writer: ProgressWriter | None) -> None:
        """Logs the means since the last time; `check`: validates, too, and judges."""
        means = self.since_log.mean(self.context)
        _require_finite(means, done, self.config)
        found = self._averaged(self.objective.validate) if check else {}
        if writer:
            writer.metrics(done, means | found | self.skipped.figures)
        if check:
            self.objective.judge(done, self.since_check.mean(self.context) | found)

    def export(self) -> None:
        """Writes the artifact's folders to run_dir/export, which exists only when complete."""
        target = self.context.run_dir / EXPORT
        if self.context.is_main:
            with written_aside(target) as folder:
                self.objective.export(folder)
        else:
            self.objective.export(target)
        barrier(self.context)

    @property
    def _meters(self) -> tuple[Meter, Meter]:
        return self.since_log, self.since_check

    def _heed_interruptions(self, done: int, is_saved: bool) -> None:
        """Saves what would be lost; it is not logged, so that the curves do not show when a run was interrupted."""
        asked = self.interruptions.asked()
        if asked.save and not is_saved:
            self._save(done)
        if asked.stop:
            raise UserError(f"stopped after step {max(done, 0)} of {self.config.num_steps}, with a checkpoint")

    def _averaged(self, validate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Validation metrics averaged over workers; leaves the random state as it was."""
        meter = Meter()
        with kept_random_state():
            meter.add(validate())
        return meter.mean(self.context)

    def _save(self, done: int) -> None:
        context, place = self.context, self.context.placement
        info = CheckpointInfo(
            step=done,
            engine=place.engine,
            world_size=context.world_size,
            sequence_parallel_size=place.sequence_parallel_size,
            zero_stage=place.zero_stage,
            num_skipped=self.skipped.num_skipped,
            **asdict(self.usage.so_far(context)),
        )
        self.store.save(done, lambda aside: write_checkpoint(aside, self.objective, self._meters, context, info))
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
