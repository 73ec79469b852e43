"""Runs training on Ray Train workers: start, resume, stop."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from magic141.accelerator import give_back_freed_memory
from magic141.artifacts.fingerprint import CodeStamp
from magic141.cluster.address import ray_cluster
from magic141.cluster.room import straddling
from magic141.errors import UserError
from magic141.training.config import PlacementConfig
from magic141.training.context import COLLECTIVE_TIMEOUT_S, TrainContext
from magic141.training.interruption import interruptible
from magic141.training.loop import LoopResult, run_training
from magic141.training.objective import ObjectiveSpec
from magic141.training.worker_task import WorkerTask

if TYPE_CHECKING:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

ALIKE_S = 60.0  # all workers come to the same mistake within this time
_TRACEBACK_LINES = 40
# Read by Ray Train in the driver and passed on. The end of a run is noticed only at the next health check.
_RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
}


def run_on_ray(task: WorkerTask, note: Callable[[str], None]) -> LoopResult:
    """Runs the task on Ray Train workers; those that take the place of lost ones go on from the last checkpoint.

    Raises:
        UserError: a mistake that all workers came to.
        RuntimeError: workers failed more often than allowed.
    """
    _configure_ray_train()
    from magic141.cluster.session import ensure_ray, require_room

    ensure_ray()
    give_back_freed_memory()  # earlier stages may have encoded in this process, on a GPU that a worker may get
    import ray.train
    from ray.train.torch import TorchTrainer

    placement = task.config.placement
    each = {"cpus_per_worker": placement.cpus_per_worker, "gpus_per_worker": placement.gpus_per_worker}
    require_room("placement.num_workers", placement.num_workers, each)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if remark := straddling(placement.sequence_parallel_size, each, nodes):
        note(remark)
    trainer = TorchTrainer(
        _worker,
        # pickled, so that Ray's controller need not import the models' code and workers check theirs before loading
        train_loop_config={"code": code_of(task.spec), "task": pickle.dumps(task)},
        scaling_config=_scaling(placement),
        torch_config=torch_config(placement),
        run_config=ray.train.RunConfig(
            name=task.run_dir.name,
            storage_path=str(task.run_dir.parent),
            failure_config=ray.train.FailureConfig(max_failures=placement.max_failures),
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # not in the main thread, where Ray would catch Ctrl-C and swallow it
    return interruptible(lambda: _fit(trainer, task.run_dir), task, note, end=ray.shutdown)


def _worker(config: dict[str, Any]) -> dict[str, Any] | str:
    """Runs on every Ray worker.

    Returns:
        The result, or the message of a user's mistake that all workers came to: an exception Ray would retry.
    """
    import ray.train
    from ray.train.torch import get_device

    place = ray.train.get_context()
    rank, world_size = place.get_world_rank(), place.get_world_size()
    if refusal := _refusal(config["code"].trouble(), world_size):
        return refusal
    task: WorkerTask = pickle.loads(config["task"])
    if refusal := _refusal(missing_folder(task), world_size):
        return refusal
    torch.set_num_threads(task.config.placement.threads_per_worker)
    context = TrainContext(rank, world_size, get_device(), task.run_dir, task.seed, task.config.placement)
    try:
        return asdict(run_training(task, context, machines_to_go))
    except UserError as mistake:
        if world_size == 1 or all_workers_failed_alike(dist.distributed_c10d._get_default_store(), rank, world_size):
            return str(mistake)
        raise RuntimeError(f"on {socket.gethostname()}, while another worker goes on: {mistake}") from mistake
    except Exception as error:  # Ray passes on only the message, so the traceback has to be in it
        raise RuntimeError(traceback.format_exc()) from error


def machines_to_go() -> list[str] | None:
    """The workers' nodes of which Ray has notice that they will be taken away; called by all workers at once."""
    import ray.train

    info = ray.train.get_preemption_info()
    return info.preempted_node_ids if info else None


def code_of(spec: ObjectiveSpec) -> CodeStamp:
    """Stamp of the code that decides what training computes: the loop, and the objective if it is part of a package."""
    objective = type(spec).__module__
    return CodeStamp.of(["magic141.training.loop", *([objective] if "." in objective else [])])


def missing_folder(task: WorkerTask) -> str | None:
    """An error message if this worker's node lacks the run's folder or one that the objective reads, otherwise None."""
    read = [value for value in vars(task.spec).values() if isinstance(value, Path)]
    proofs = [(task.run_dir, task.mark), *zip(read, read, strict=True)]
    if absent := next((folder for folder, proof in proofs if not proof.exists()), None):
        return (
            f"{absent}: missing on {socket.gethostname()}, where a worker runs; every node needs the workspace, and "
            "the base model, under the same path"
        )
    return None


def all_workers_failed_alike(
    store: dist.distributed_c10d.Store, rank: int, world_size: int, timeout_s: float = ALIKE_S
) -> bool:
    """Whether every worker reports a user's mistake in time; called by a worker `rank` that has met one.

    A worker that ended as if all had would leave the others waiting for it in a collective operation, for an hour.
    """
    store.set(f"mistake/{rank}", "")
    try:
        store.wait([f"mistake/{other}" for other in range(world_size)], timedelta(seconds=timeout_s))
    except dist.DistStoreError:
        return False
    return True


def _refusal(mine: str | None, world_size: int) -> str | None:
    """All workers' refusals, exchanged so that all stop: a worker that stopped alone would leave the others waiting."""
    troubles = [mine]
    if world_size > 1:
        troubles = [None] * world_size
        dist.all_gather_object(troubles, mine)
    return "\n".join(sorted({trouble for trouble in troubles if trouble})) or None


def _scaling(placement: PlacementConfig) -> ScalingConfig:
    from ray.train import ScalingConfig

    resources: dict[str, float] = {"CPU": placement.cpus_per_worker}
    if placement.gpus_per_worker > 0:
        resources["GPU"] = placement.gpus_per_worker
    return ScalingConfig(
        num_workers=placement.num_workers, use_gpu=placement.gpus_per_worker > 0, resources_per_worker=resources
    )


def torch_config(placement: PlacementConfig) -> TorchConfig:
    """What connects the workers, and for how long one waits for the others."""
    from ray.train.torch import TorchConfig

    return TorchConfig("nccl" if placement.gpus_per_worker > 0 else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S)


def _configure_ray_train() -> None:
    """Sets environment variables that Ray Train reads in the driver, when it is imported and at fit."""
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    if not ray_cluster():  # a single machine of one's own is not preempted
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def _fit(trainer: TorchTrainer, run_dir: Path) -> LoopResult:
    try:
        outcome: dict[str, Any] | str = trainer.fit().return_value
    except Exception as error:
        raise RuntimeError(f"training in {run_dir} failed: {_end_of(error)}") from error
    if isinstance(outcome, str):
        raise UserError(outcome)
    return LoopResult(**outcome)


def _end_of(error: BaseException) -> str:
    """The end of Ray's message, which is where the workers' tracebacks are."""
    return "\n".join(str(error).strip().splitlines()[-_TRACEBACK_LINES:])
