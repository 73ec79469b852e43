"""An attention mask of ones that attention skips: FlashAttention takes no mask, but diffusers always makes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class FullMask(Tensor):
    """A mask [B, L] of ones, marked by its type; masks that diffusers derives from it keep the type.

    The type travels with the mask, and is therefore still right when checkpointed blocks run again. If it gets lost,
    the result is the same: a mask of ones hides nothing.
    """

    @classmethod
    def of(cls, tokens: Tensor) -> FullMask:
        """The mask of tokens [B, L, D] that are all valid."""
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device).as_subclass(cls)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs attention without the mask; results that may be masks keep the type, others become plain tensors."""
        named = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            named["attn_mask"] = None
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **named)
            is_mask = isinstance(result, Tensor) and not result.is_floating_point()
            return result.as_subclass(cls) if is_mask else result
