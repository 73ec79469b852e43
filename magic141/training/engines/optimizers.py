"""Muon for the blocks' matrices with AdamW for the rest, and the schedule: warm-up, constant, linear decay."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from magic141.training.config import OptimizerConfig
from magic141.training.engines.muon import BatchedMuon

_IN_BLOCK = re.compile(r"blocks\.\d+\.")


class MuonAdamW(Optimizer):
    """Muon for 2-D weights inside blocks, AdamW for everything else, as one optimizer with shared `param_groups`.

    Muon's updates are scaled to AdamW's root mean square, so that both use the same learning rate.
    """

    def __init__(
        self, named_parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, num_workers: int, fused: bool
    ) -> None:
        matrices = [p for name, p in named_parameters.items() if is_block_matrix(name, p)]
        others = [p for name, p in named_parameters.items() if not is_block_matrix(name, p)]
        self._parts: list[Optimizer] = []
        if matrices:
            muon = BatchedMuon(matrices, config.learning_rate, config.weight_decay, num_workers=num_workers)
            self._parts.append(muon)
        if others:
            self._parts.append(make_adamw(others, config, fused))
        super().__init__(list(named_parameters.values()), {"lr": config.learning_rate})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update by each part."""
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of both parts."""
        for part in self._parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Both parts' states."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()

    def _share(self) -> None:
        """Exposes the parts' own groups, so that setting `param_groups[i]["lr"]` takes effect."""
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes this parameter: a matrix inside a numbered block."""
    return parameter.ndim == 2 and _IN_BLOCK.search(name) is not None


def make_adamw(parameters: list[nn.Parameter], config: OptimizerConfig, fused: bool) -> AdamW:
    """AdamW; `fused`: in one pass over memory, on a CPU as on a GPU."""
    return AdamW(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=fused)


def make_optimizer(
    named_parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, num_workers: int = 1, fused: bool = True
) -> Optimizer:
    """The optimizer of `config.kind` over `named_parameters`, on one of `num_workers` workers with equal gradients."""
    if config.kind == "muon":
        return MuonAdamW(named_parameters, config, num_workers, fused)
    return make_adamw(list(named_parameters.values()), config, fused)


def set_learning_rate(optimizer: Any, step: int, num_steps: int, config: OptimizerConfig) -> None:
    """Sets all groups of an optimizer, torch's or DeepSpeed's, to the scheduled rate of 0-based `step`."""
    rate = config.learning_rate * learning_rate_factor(step, num_steps, config)
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate_factor(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Share of the peak rate at 0-based `step`: a pure function, so that resuming needs no scheduler state."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay_start = max(config.constant_fraction * num_steps, config.warmup_steps)
    last = num_steps - 1
    if step <= decay_start or last <= decay_start:
        return warmup
    progress = min(1.0, (step - decay_start) / (last - decay_start))
    return 1.0 - progress * (1.0 - config.final_fraction)
