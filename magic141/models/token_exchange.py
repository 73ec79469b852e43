"""Exchanges of tokens between the workers that evaluate a network together, with their gradients.

What all workers compute alike from whole outputs, as a loss, counts once: gradients are such that their mean over the
workers is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


def exchange(tensor: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Sends rows to every worker of `group`, and returns the rows received from them, in the order of the workers.

    Args:
        tensor: the rows for the first worker, followed by those for the second, and so on; [sum(sent), ...].
        sent: number of rows for every worker.
        received: number of rows from every worker.
        group: the workers.
    """
    result: Tensor = _Exchange.apply(tensor, sent, received, group)  # type: ignore[no-untyped-call]
    return result


def gather(own: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """All workers' rows [sum(sizes), ...], on each of them; `sizes` are their numbers of rows."""
    result: Tensor = _Gather.apply(own, sizes, group)  # type: ignore[no-untyped-call]
    return result


def same_on_all(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The tensor itself, which all workers have alike and each uses for its own part of a sum."""
    result: Tensor = _SameOnAll.apply(tensor, group)  # type: ignore[no-untyped-call]
    return result


def _exchanged(tensor: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    rows = tensor.new_empty(sum(received), *tensor.shape[1:])
    dist.all_to_all_single(rows, tensor.contiguous(), list(received), list(sent), group=group)
    return rows


class _Exchange(Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.back = received, sent, group
        return _exchanged(tensor, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _exchanged(gradients[0], *ctx.back), None, None, None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = list(sizes), group
        copies = own.repeat(group.size(), *[1] * (own.dim() - 1))
        return _exchanged(copies, [len(own)] * group.size(), sizes, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        own = gradients[0].split(ctx.sizes)[ctx.group.rank()]
        return own * ctx.group.size(), None, None  # the others have none of it: their part of the mean is zero


class _SameOnAll(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        mean = gradients[0].contiguous().clone()
        dist.all_reduce(mean, group=ctx.group)
        return mean / ctx.group.size(), None
