"""What a stage asks for: its workers, and the CPUs and GPUs of each."""

from __future__ import annotations

from dataclasses import dataclass

from magic141.config import PipelineConfig
from magic141.config_checks import TRAINING_SECTIONS
from magic141.ray_address import ray_cluster
from magic141.room import TO_A_CLUSTER, shortage, this_machine
from magic141.training.config import PlacementConfig

HERE = "this process"
NO_CLUSTER_HELPS = "use 0, or launcher = ray with RAY_ADDRESS of a cluster"


@dataclass(frozen=True)
class Needs:
    """What a stage asks for.

    Attributes:
        kind: who works, in words: Ray's workers with their engine, or this process.
        field: config field that sets the number of workers.
        num_workers: how many.
        cpus: CPUs of each, by the config field that sets them.
        gpus: GPUs of each, by the config field that sets them.
        remedy: what to do if there are fewer.
    """

    kind: str = HERE
    field: str = ""
    num_workers: int = 1
    cpus: tuple[str, float] = ("", 0)
    gpus: tuple[str, float] = ("", 0)
    remedy: str = TO_A_CLUSTER

    @property
    def num_gpus(self) -> float:
        """GPUs of all workers together."""
        return self.num_workers * self.gpus[1]

    @property
    def words(self) -> str:
        """Workers, CPUs and GPUs in words."""
        if self.is_here:
            return self.kind
        each = f"{self.cpus[1]:g} CPU" + (f" + {self.gpus[1]:g} GPU" if self.gpus[1] else "")
        return f"{self.num_workers} x {each} ({self.kind})"

    @property
    def is_here(self) -> bool:
        """Whether this process does the work itself, even if there is a cluster."""
        return self.kind.startswith(HERE)

    def lacking_here(self) -> str | None:
        """A line on what this machine has too little of, if anything; a cluster that does the work may still grow."""
        if ray_cluster() and not self.is_here:
            return None
        each = {field: amount for field, amount in (self.cpus, self.gpus) if field}
        return shortage(self.field, self.num_workers, each, this_machine(), self.remedy)


def needs_of(stage: str, config: PipelineConfig) -> Needs:
    """What the stage asks for by its config."""
    if stage == "prepare_data":
        data = config.data
        gpus = ("num_gpus_per_worker", data.num_gpus_per_worker)
        return Needs("Ray Data", "data.num_workers", data.num_workers, ("", 1), gpus)
    if stage == "generate" and config.generate.num_workers > 1:
        workers, gpus = config.generate.num_workers, ("gpus_per_worker", config.generate.gpus_per_worker)
        return Needs("Ray tasks", "generate.num_workers", workers, ("", 1), gpus)
    if stage in TRAINING_SECTIONS and getattr(config, stage).num_steps:
        return _of_training(f"{stage}.placement.num_workers", getattr(config, stage).placement)
    return Needs()


def _of_training(field: str, where: PlacementConfig) -> Needs:
    gpus = ("gpus_per_worker", where.gpus_per_worker)
    if where.launcher == "local":
        return Needs(f"{HERE}, {where.engine}", field, gpus=gpus, remedy=NO_CLUSTER_HELPS)
    kind = where.engine + (f" ZeRO-{where.zero_stage}" if where.engine == "deepspeed" else "")
    return Needs(kind, field, where.num_workers, ("cpus_per_worker", where.cpus_per_worker), gpus)
