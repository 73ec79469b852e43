"""Exponential moving average of the trained weights, which is what is validated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magic141.training.engines.engine import Engine


class Ema:
    """Average of a network's trainable parameters in fp32, unbiased from the first update on.

    After n updates the average is sum_k d^(n-k) p_k / sum_k d^(n-k): the untrained start has no weight, so that a long
    horizon does not hold back a short run. Build it after the engine: under ZeRO-3 a worker averages only its shard.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self._tracked = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._shadow = {name: _local(p).detach().float().clone() for name, p in self._tracked.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the average."""
        self.num_updates += 1
        weight = (1 - self.decay) / (1 - self.decay**self.num_updates)
        current = [_local(p).detach().float() for p in self._tracked.values()]
        torch._foreach_lerp_(list(self._shadow.values()), current, weight)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates in it."""
        return {"num_updates": self.num_updates, "shadow": self._shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.num_updates = state["num_updates"]
        for name, value in self._shadow.items():
            value.copy_(state["shadow"][name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network's parameters are the average (for validation); afterwards exactly what they were."""
        kept = {name: _local(p).detach().to("cpu", copy=True) for name, p in self._tracked.items()}
        self._put(self._shadow)
        try:
            yield
        finally:
            self._put(kept)

    def full_state_dict(self, engine: Engine) -> dict[str, Tensor]:
        """All the network's weights on rank 0, the trained ones averaged; copies in host memory.

        Collective under ZeRO-3. On other ranks there is nothing of use in it.
        """
        if engine.sharded:
            with self.applied():
                return engine.full_state_dict()
        state = engine.full_state_dict()
        return {
            name: self._shadow[name].to("cpu", copy=True) if name in self._shadow else state[name] for name in state
        }

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._tracked.items():
            _local(parameter).data.copy_(values[name])
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()  # DeepSpeed gathers shards on a stream of its own
        _refresh(list(self._tracked.values()))


def _refresh(parameters: list[Any]) -> None:
    """Updates from their shards the parameters that ZeRO-3 has gathered, as after a forward pass alone (collective)."""
    whole = [p for p in parameters if hasattr(p, "ds_tensor") and p.ds_status.name == "AVAILABLE"]
    if whole:
        whole[0].partition(whole)
        whole[0].all_gather(whole)


def _local(parameter: nn.Parameter) -> Tensor:
    """This worker's part of a parameter: all of it, or its ZeRO-3 shard."""
    shard = getattr(parameter, "ds_tensor", None)
    return parameter if shard is None else shard
