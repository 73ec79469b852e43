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
    multiprocessing.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        num_workers = task.config.placement.num_workers
        start_processes(_work, (task, Path(folder)), num_workers, start_method="forkserver")
        return LoopResult(**json.loads((Path(folder) / "result.json").read_text()))


def _work(rank: int, task: WorkerTask, folder: Path) -> None:
    placement = task.config.placement
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(placement.threads_per_worker)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=placement.num_workers)
    context = TrainContext(rank, placement.num_workers, torch.device("cpu"), task.run_dir, task.seed, placement)
    result = run_training(task, context)
    if context.is_main:
        (folder / "result.json").write_text(json.dumps(asdict(result)))
    dist.barrier()
    os._exit(0)  # gloo's threads sometimes abort a process that ends in the usual way
