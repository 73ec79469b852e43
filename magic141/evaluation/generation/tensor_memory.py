"""Peak memory of tensors, counted operation by operation: the same on every CPU, at any load and after any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from magic141.evaluation.generation.performance import MIB


class TensorMemory(TorchDispatchMode):
    """Inside, counts the bytes of all tensors that this thread's operations make, for as long as they live.

    Views take nothing, and what was there before does not count. Nor does what an operation keeps within itself, such
    as a block of attention weights: that is up to the kernels of a CPU.

    Attributes:
        peak_bytes: the most that was alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._alive = WeakIdKeyDictionary()  # storage -> bytes

    @property
    def peak_mb(self) -> float:
        """MiB that were alive at once."""
        return self.peak_bytes / MIB

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation and counts what it makes while its inputs are still there."""
        there = {id(storage) for storage in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if id(storage) not in there:
                self._alive[storage] = storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
        return made


def _storages(values: object) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_iter(values) if isinstance(value, Tensor))
