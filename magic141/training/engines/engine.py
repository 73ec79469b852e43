"""The interface of a trained network with its optimizer, whether plain, data-parallel or DeepSpeed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]


class Engine(Protocol):
    """A network in training. Every method must be called on all workers, in the same order."""

    @property
    def module(self) -> nn.Module:
        """The network itself: for forward passes without gradient, LoRA strengths, export."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether `module`'s parameters are split over the workers (ZeRO-3)."""
        ...

    @property
    def num_updates(self) -> int:
        """Calls of `step` so far, skipped updates included: the place in the learning-rate schedule."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass whose gradients `backward` and `step` use."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed-precision context for forward and loss."""
        ...

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Accumulate gradients of `loss`.

        Args:
            loss: the mean over this worker's clips, or a summand of it: of some clips, or one term of several.
            last: whether this is the last pass before `step`.
        """
        ...

    def step(self) -> float:
        """Average gradients over workers, clip, update, zero; returns the gradient norm before clipping."""
        ...

    def full_state_dict(self) -> dict[str, Tensor]:
        """All weights, unsharded, on rank 0 and none elsewhere; copies in host memory (collective under ZeRO-3)."""
        ...

    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer and counters into `folder` (made if missing)."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...


def passes_dtype(precision: Precision) -> torch.dtype:
    """The dtype for frozen weights: autocast would round them anyway, and bf16 halves them, to 26 GB at 13B."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """The mixed-precision context of `precision` on `device`.

    Without torch's cache, which keeps bf16 copies of all trained weights for the whole forward pass, each for one use.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
