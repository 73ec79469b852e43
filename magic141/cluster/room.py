"""The CPUs and GPUs of this machine, and what to say when a config asks for more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from magic141.data.config import DataConfig

TO_A_CLUSTER = "lower one of them, or set RAY_ADDRESS to a cluster"
NO_GPU_HERE = (
    "this process has no GPU: beside the workers, prompts are encoded and held-out clips decoded on its CPU, which "
    "with this codec and these encoders takes hours; start the same command on a node with a GPU"
)
_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """The CPUs that this process may use: a container, a batch system or taskset may grant fewer than there are."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    granted = (os.cpu_count(), affinity, _cgroup_cpus())
    return min((number for number in granted if number), default=1)


def _cgroup_cpus() -> int | None:
    """The CPU time that the container's cgroup (version 2 or 1) grants, in whole CPUs; None if it has no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((_CGROUPS / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdecimal() and int(period):  # without a limit it is "max", or -1
            return -(-int(quota) // int(period))
    return None


def cpus_here() -> int:
    """The CPUs that a Ray started here has; at least two, so that two workers always fit."""
    return max(2, usable_cpus())


def gpus_here() -> int:
    """The GPUs that a Ray started here has."""
    import torch  # takes seconds: `plan` asks for GPUs only where a stage does

    return torch.cuda.device_count()


def shortage(
    field: str, number: int, each: Mapping[str, float], present: Mapping[str, float], remedy: str = TO_A_CLUSTER
) -> str | None:
    """A line on what this machine lacks; None if it has everything.

    Args:
        field: config field that sets `number`.
        number: workers or replicas.
        each: config field -> CPUs or GPUs that one of them takes.
        present: `CPU` and `GPU` -> how many there are.
        remedy: what to do about it.
    """
    for share, amount in each.items():
        kind = "GPU" if "gpu" in share else "CPU"
        if number * amount > present.get(kind, 0):
            return (
                f"{field} = {number}: with {share} = {amount:g} they take {number * amount:g} {kind}s, of which this "
                f"machine has {present.get(kind, 0):g}; {remedy}"
            )
    return None


def straddling(size: int, each: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What to tell if of `size` neighbouring workers, which exchange much, some may be on one node, some on another.

    Args:
        size: workers that share a clip; Ray fills one node after the other.
        each: as in `shortage`.
        nodes: of each node, `CPU` and `GPU` -> how many it has.
    """
    takes = {"GPU" if "gpu" in share else "CPU": amount for share, amount in each.items() if amount}
    room = [min((int(node.get(kind, 0) / amount) for kind, amount in takes.items()), default=0) for node in nodes]
    used = [number for number in room if number]
    if len(used) < 2 or not any(number % size for number in used):
        return None
    return (
        f"placement.sequence_parallel_size = {size}: nodes have room for {', '.join(map(str, used))} workers, so that "
        f"some that share a clip may be on two nodes, which is slow; use nodes with room for a multiple of {size}"
    )


def slow_without_gpu(data: DataConfig) -> str | None:
    """What to tell before a run whose own process would encode and decode with HunyuanVideo's networks on a CPU."""
    large = "hunyuan" in (data.codec.kind, data.encoder.kind)
    return NO_GPU_HERE if large and not gpus_here() else None
