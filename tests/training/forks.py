"""Training workers without Ray: forks of a process that has imported everything, which start at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from magic141.training.context import TrainContext
from magic141.training.loop import LoopResult, run_training
from magic141.training.worker_task import WorkerTask

IMPORTED = [__name__, "deepspeed", "magic141.training.cfg_distillation", "magic141.training.dmd2.spec"]


def run_on_forks(task: WorkerTask, note: Callable[[str], None]) -> LoopResult:
    """In the place of `run_on_ray`; the first worker that fails ends the training."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        run_together(_train, task.config.placement.num_workers, task, result)
        return LoopResult(**json.loads(result.read_text()))


def run_together(work: Callable[..., None], num_workers: int, *args: object) -> None:
    """Calls `work(rank, *args)` in so many processes, which have a process group."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_work, (work, num_workers, folder, args), num_workers, start_method="forkserver")


def _work(rank: int, work: Callable[..., None], num_workers: int, folder: str, args: tuple[object, ...]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=num_workers)
    work(rank, *args)
    dist.barrier()
    os._exit(0)  # gloo's threads sometimes abort a process that ends in the usual way


def _train(rank: int, task: WorkerTask, result: Path) -> None:
    placement = task.config.placement
    torch.set_num_threads(placement.threads_per_worker)
    context = TrainContext(rank, placement.num_workers, torch.device("cpu"), task.run_dir, task.seed, placement)
    outcome = run_training(task, context)
    if context.is_main:
        result.write_text(json.dumps(asdict(outcome)))
