"""Muon with all matrices of a shape orthogonalised in one batched product.

The same update as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, which walks over the matrices one by one: for
networks of many small matrices those kernel launches cost a third of a training step on a CPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
RMS_SCALE = 0.2  # the root mean square of a typical AdamW update


class BatchedMuon(Optimizer):
    """Momentum, then the nearest (semi-)orthogonal matrix, scaled to the size of an AdamW update."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One Nesterov update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonalize(self._momentum(parameters, group["momentum"]))
                rate = group["lr"] * RMS_SCALE * max(shape) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype)), alpha=-rate)

    def _momentum(self, parameters: list[Tensor], momentum: float) -> Tensor:
        """Nesterov momentum of the gradients, stacked [N, rows, columns]."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter in parameters:
            self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return torch.stack(torch._foreach_lerp(gradients, buffers, momentum))


def orthogonalize(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration towards U V^T of each matrix, in bfloat16.

    Args:
        matrices: [N, rows, columns].

    Returns:
        As given; singular values about 1 (0.7 to 1.2).
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
