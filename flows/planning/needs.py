"""What a stage asks for: its workers, and the CPUs and GPUs of each."""

from __future__ import annotations

from dataclasses import dataclass

from magic141.cluster.address import ray_cluster
from magic141.cluster.room import TO_A_CLUSTER, cpus_here, gpus_here, shortage
from magic141.config import PipelineConfig
from magic141.config.checks import TRAINING_SECTIONS
from magic141.training.config import PlacementConfig

HERE = "this process"
NO_CLUSTER_HELPS = "use 0, or launcher = ray with RAY_ADDRESS of a cluster"


@dataclass(frozen=True)
class Amount:
    """CPUs or GPUs of a worker, and the config field that sets them, if one does."""

    number: float = 0
    field: str = ""


@dataclass(frozen=True)
class Needs:
    """What a stage asks for.

    Attributes:
        kind: who works, in words: Ray Data, Ray's tasks, a training engine.
        field: config field that sets the number of workers.
        num_workers: how many.
        cpus: CPUs of each.
        gpus: GPUs of each.
        is_here: this process does the work itself, even if there is a cluster.
        remedy: what to do if there are fewer.
    """

    kind: str = ""
    field: str = ""
    num_workers: int = 1
    cpus: Amount = Amount()
    gpus: Amount = Amount()
    is_here: bool = False
    remedy: str = TO_A_CLUSTER

    @property
    def num_gpus(self) -> float:
        """GPUs of all workers together."""
        return self.num_workers * self.gpus.number

    @property
    def words(self) -> str:
        """Workers, CPUs and GPUs in words."""
        if self.is_here:
            return f"{HERE}, {self.kind}" if self.kind else HERE
        each = f"{self.cpus.number:g} CPU" + (f" + {self.gpus.number:g} GPU" if self.gpus.number else "")
        return f"{self.num_workers} x {each} ({self.kind})"

    def lacking_here(self) -> str | None:
        """A line on what this machine has too little of, if anything; a cluster that does the work may still grow."""
        if ray_cluster() and not self.is_here:
            return None
        each = {amount.field: amount.number for amount in (self.cpus, self.gpus) if amount.field}
        present = {"CPU": cpus_here(), "GPU": gpus_here() if self.gpus.number else 0}
        return shortage(self.field, self.num_workers, each, present, self.remedy)


def needs_of(stage: str, config: PipelineConfig) -> Needs:
    """What the stage asks for by its config."""
    if stage == "prepare_data":
        data = config.data
        gpus = Amount(data.num_gpus_per_worker, "num_gpus_per_worker")
        return Needs("Ray Data", "data.num_workers", data.num_workers, Amount(1), gpus)
    if stage == "generate" and config.generate.num_workers > 1:
        workers, gpus = config.generate.num_workers, Amount(config.generate.gpus_per_worker, "gpus_per_worker")
        return Needs("Ray tasks", "generate.num_workers", workers, Amount(1), gpus)
    if stage in TRAINING_SECTIONS and getattr(config, stage).num_steps:
        return _of_training(f"{stage}.placement.num_workers", getattr(config, stage).placement)
    return Needs(is_here=True)


def _of_training(field: str, where: PlacementConfig) -> Needs:
    gpus = Amount(where.gpus_per_worker, "gpus_per_worker")
    if where.launcher == "local":
        return Needs(where.engine, field, gpus=gpus, is_here=True, remedy=NO_CLUSTER_HELPS)
    kind = where.engine + (f" ZeRO-{where.zero_stage}" if where.engine == "deepspeed" else "")
    return Needs(kind, field, where.num_workers, Amount(where.cpus_per_worker, "cpus_per_worker"), gpus)
