"""Device and CPU threads of networks, and the refusal of large ones on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from magic141.errors import UserError
from magic141.models.size import saved_num_parameters

MAX_CPU_PARAMETERS = 1e9


def sampling_device() -> torch.device:
    """The GPU of this process if it sees one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
