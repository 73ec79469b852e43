"""A mask without padding, which attention leaves out: FlashAttention takes no masks, and diffusers always makes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class FullMask(Tensor):
    """A mask [B, L] of ones whose type says so, also that of the masks which diffusers makes of it.

    The type travels with the mask, so that it is still right when checkpointed blocks run again. If it is lost on the
    way, the ones mask nothing.
    """

    @classmethod
    def of(cls, tokens: Tensor) -> FullMask:
        """For tokens [B, L, D] that are all valid."""
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device).as_subclass(cls)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Attention without the mask; other results that may be masks keep the type, all others are plain tensors."""
        named = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            named["attn_mask"] = None
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **named)
            is_mask = isinstance(result, Tensor) and not result.is_floating_point()
            return result.as_subclass(cls) if is_mask else result
