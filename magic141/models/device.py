"""Device and CPU threads of networks, and what is said before large ones would run on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from magic141.data.config import DataConfig
from magic141.errors import UserError
from magic141.models.size import saved_num_parameters

MAX_CPU_PARAMETERS = 1e9
NO_GPU_HERE = (
    "this process has no GPU: beside the workers, prompts are encoded and held-out clips decoded on its CPU, which "
    "with this codec and these encoders takes hours; start the same command on a node with a GPU"
)


def sampling_device() -> torch.device:
    """The GPU of this process if it sees one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def slow_without_gpu(data: DataConfig) -> str | None:
    """What to tell before a run whose own process would encode and decode with HunyuanVideo's networks on a CPU."""
    large = "hunyuan" in (data.codec.kind, data.encoder.kind)
    return NO_GPU_HERE if large and sampling_device().type == "cpu" else None


@contextmanager
def cpu_threads(num: int) -> Iterator[None]:
    """Runs the block with `num` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def refuse_days_on_cpu(transformer: Path, device: torch.device, remedy: str) -> None:
    """Raises UserError before a large network is loaded onto a CPU; reads only its config.

    Args:
        transformer: a diffusers folder; one without config.json is left for the loader to refuse.
        device: device on which it would be sampled.
        remedy: what to do other than finding a GPU.

    Raises:
        UserError: if it has more than 1e9 parameters and there is no GPU.
    """
    if device.type != "cpu" or not (transformer / "config.json").is_file():
        return
    count = saved_num_parameters(transformer)
    if count > MAX_CPU_PARAMETERS:
        raise UserError(
            f"{transformer}: a network of {count / 1e9:.1f}e9 parameters and no GPU that torch sees; expected at most "
            f"{MAX_CPU_PARAMETERS / 1e9:.0f}e9 on a CPU, where more takes days to sample; {remedy}"
        )
