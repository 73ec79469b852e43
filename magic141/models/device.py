"""Device and CPU threads of networks, and the refusal of large ones on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from magic141.errors import UserError
from magic141.models.size import saved_num_parameters

MAX_CPU_PARAMETERS = 1e9


def sampling_device(num_gpus: float | None = None) -> torch.device:
    """The device on which this process encodes, samples and decodes.

    Args:
        num_gpus: what Ray gave to this worker; one that got none still sees its machine's GPUs, which are others'.
            Outside of Ray's workers None: a GPU if there is one.
    """
    granted = num_gpus is None or num_gpus > 0
    return torch.device("cuda" if granted and torch.cuda.is_available() else "cpu")


@contextmanager
def cpu_threads(num: int) -> Iterator[None]:
    """Runs the block with `num` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def refuse_large_on_cpu(transformer: Path, device: torch.device, remedy: str) -> None:
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
