"""Start a training stage: on Ray Train workers, or in this process."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from magic141.errors import UserError
from magic141.models.device import cpu_threads
from magic141.stage_log import StageLog
from magic141.text_files import replace_text
from magic141.training.config import METRICS_FILE, PlacementConfig, TrainConfig
from magic141.training.context import TrainContext
from magic141.training.engines.deepspeed_engine import forget_process_group
from magic141.training.interruption import interruptible
from magic141.training.loop import EXPORT, LoopResult, run_training
from magic141.training.objective import ObjectiveSpec
from magic141.training.progress import follow, write_metrics
from magic141.training.random_numbers import kept_random_state
from magic141.training.ray_launch import run_on_ray
from magic141.training.worker_task import WorkerTask

_RESULT = "result.json"


@dataclass(frozen=True)
class TrainResult(LoopResult):
    """A finished training run: what it used, and what it made.

    Attributes:
        export: the folder that the objective exported.
        metrics_file: metrics.jsonl, each logged step once.
    """

    export: Path
    metrics_file: Path


def launch(spec: ObjectiveSpec, config: TrainConfig, run_dir: Path, log: StageLog, seed: int) -> TrainResult:
    """Train to the end, from the last checkpoint in `run_dir` if there is one; returns at once if it is complete.

    Args:
        spec: builds the objective on a worker.
        config: steps, optimizer, placement.
        run_dir: the run's own folder, the same for every attempt; on a shared disk if workers are on other machines.
        log: receives the progress bar and the metrics.
        seed: the stage's seed.

    Raises:
        UserError: for mistakes in config or data, and for diverged training.
        RuntimeError: if a worker failed more often than allowed; contains the end of its traceback.
    """
    run_dir = run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    finished = _finished(run_dir, config)
    if finished:
        return finished
    task = WorkerTask(spec, config, run_dir, seed, uuid.uuid4().hex)
    run = run_on_ray if config.placement.launcher == "ray" else _run_here
    with task.marked(), follow(run_dir, task.launch_id, config.num_steps, log):
        outcome = run(task, log.note)
    if outcome.resumed_from_step:
        log.note(f"training continued from step {outcome.resumed_from_step} of {config.num_steps}")
    if outcome.num_skipped:
        log.note(f"{outcome.num_skipped} of {config.num_steps} steps skipped an update, for non-finite gradients")
    record = {"num_steps": config.num_steps, **asdict(outcome)}
    write_metrics(run_dir)
    replace_text(run_dir / _RESULT, json.dumps(record))
    return _result(run_dir, outcome)


def _finished(run_dir: Path, config: TrainConfig) -> TrainResult | None:
    """The result of an earlier launch that completed."""
    file = run_dir / _RESULT
    if not file.exists() or not (run_dir / EXPORT).is_dir():
        return None
    record = json.loads(file.read_text())
    if record.pop("num_steps") != config.num_steps:
        return None
    return _result(run_dir, LoopResult(**record))


def _result(run_dir: Path, outcome: LoopResult) -> TrainResult:
    return TrainResult(**asdict(outcome), export=run_dir / EXPORT, metrics_file=run_dir / METRICS_FILE)


def _run_here(task: WorkerTask, note: Callable[[str], None]) -> LoopResult:
    """Runs one worker in this process; restores the thread count and the random state afterwards."""
    placement = task.config.placement
    if placement.gpus_per_worker > 0 and not torch.cuda.is_available():
        raise UserError(
            f"placement.gpus_per_worker = {placement.gpus_per_worker:g}: this machine has no GPU that torch can use "
            "(`magic141 doctor`); use 0, or launcher = ray with RAY_ADDRESS of a cluster"
        )
    device = torch.device("cuda" if placement.gpus_per_worker > 0 else "cpu")
    context = TrainContext(0, 1, device, task.run_dir, task.seed, placement)

    def work() -> LoopResult:
        with cpu_threads(placement.threads_per_worker), kept_random_state(), _process_group(placement):
            return run_training(task, context)

    return interruptible(work, task, note)


@contextmanager
def _process_group(placement: PlacementConfig) -> Iterator[None]:
    """A process group of one process, which DeepSpeed requires; the other engines need none."""
    if placement.engine != "deepspeed" or dist.is_initialized():
        yield
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if placement.gpus_per_worker > 0 else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        linear = torch.nn.functional.linear
        try:
            yield
        finally:
            torch.nn.functional.linear = linear  # ZeRO stage 3 leaves its own there, which rounds differently
            dist.destroy_process_group()
            forget_process_group()
