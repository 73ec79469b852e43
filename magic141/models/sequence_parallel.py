"""Sequence parallelism: several workers evaluate a network on the same clips, each on a part of their tokens.

Attention is that of DeepSpeed-Ulysses (Jacobs et al. 2023): before it, workers exchange tokens for heads, so that each
has some heads of all tokens, and after it they exchange back. Everything else in a block treats tokens one by one. The
network's inputs and outputs are whole, and the same on all of these workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from magic141.errors import UserError
from magic141.models.full_mask import FullMask
from magic141.models.token_exchange import exchange, gather, same_on_all


def split_sequence(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Makes the transformers in `model` evaluate their tokens together with the other workers of `group`.

    All of them have to evaluate the same inputs in step, and to compute the same loss of the whole output. Backward
    passes leave gradients whose mean over the workers is the loss' gradient.
    """
    for network in model.modules():
        if isinstance(network, HunyuanVideoTransformer3DModel):
            _SplitPasses(network, group)


def all_video_tokens(own: Tensor, attention_mask: Tensor) -> Tensor:
    """All tokens [B, L, D] of the video, of which a block has returned `own` [B, l, D]: all, if none are elsewhere.

    Args:
        own: the block's output.
        attention_mask: the mask that the block was given.
    """
    return attention_mask.shards.gather_video(own) if isinstance(attention_mask, ShardedMask) else own


@dataclass(frozen=True)
class Shards:
    """How the tokens of one pass are split: every worker has a part of the video's, and after it a part of the text's.

    Attributes:
        group: the workers.
        video: the number of video tokens of each.
        text: the number of text and image tokens of each.
        text_mask: which of all text tokens are no padding, [B, L].
        valid: the same of all tokens, in the order of the workers; None if there is no padding.
        attended: an entry for every time that attention was computed.
    """

    group: dist.ProcessGroup
    video: Sequence[int]
    text: Sequence[int]
    text_mask: Tensor
    valid: Tensor | None
    attended: list[None] = field(default_factory=list)

    @classmethod
    def of(cls, group: dist.ProcessGroup, num_video: int, text_mask: Tensor) -> Shards:
        """Of `num_video` video tokens and the text tokens that `text_mask` [B, L] belongs to."""
        video, text = _parts(num_video, group.size()), _parts(text_mask.shape[1], group.size())
        if isinstance(text_mask, FullMask):
            return cls(group, video, text, text_mask, None)
        valid = []
        for num, part in zip(video, text_mask.bool().split(text, dim=1), strict=True):
            valid += [part.new_ones(len(part), num), part]
        return cls(group, video, text, text_mask, torch.cat(valid, dim=1))

    def own(self, whole: Tensor, sizes: Sequence[int], dim: int) -> Tensor:
        """This worker's part of `whole`, which is split into `sizes` along `dim`; a copy, so that the whole can go."""
        own: Tensor = whole.split(list(sizes), dim)[self.group.rank()]
        return own.clone()

    def gather_video(self, own: Tensor) -> Tensor:
        """All video tokens [B, L, D], of which this worker has [B, l, D]."""
        return gather(own.movedim(1, 0), self.video, self.group).movedim(0, 1)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Attention of this worker's tokens to those of all; arguments and result are [B, H, l, D]."""
        self.attended.append(None)
        num, here, dtype = self.group.size(), [query.shape[2]] * self.group.size(), _dtype_of_attention(value)
        lengths = [video + text for video, text in zip(self.video, self.text, strict=True)]
        by_worker = [one.to(dtype).unflatten(1, (num, -1)).permute(1, 3, 0, 2, 4) for one in (query, key, value)]
        rows = torch.stack(by_worker, dim=2).flatten(0, 1)  # [P*l, 3, B, H/P, D]
        q, k, v = exchange(rows, here, lengths, self.group).permute(1, 2, 3, 0, 4)  # [B, H/P, L, D] each
        mask = None if self.valid is None else self.valid[:, None, None]
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
        rows = exchange(attended.permute(2, 0, 1, 3), lengths, here, self.group)  # [P*l, B, H/P, D]
        heads: Tensor = rows.unflatten(0, (num, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
        return heads


class ShardedMask(Tensor):
    """The mask [B, l] of a worker's text tokens; it brings the shards of its pass to where attention is computed.

    They travel with the mask and with the masks that diffusers derives from it, and are therefore still right when
    checkpointed blocks run again (compare `FullMask`).
    """

    shards: Shards

    @classmethod
    def of(cls, shards: Shards) -> ShardedMask:
        """This worker's part of the whole mask."""
        return cls._with(shards, shards.own(shards.text_mask.as_subclass(Tensor), shards.text, dim=1))

    @classmethod
    def _with(cls, shards: Shards, mask: Tensor) -> ShardedMask:
        marked = mask.as_subclass(cls)
        marked.shards = shards
        return marked

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs attention over the tokens of all workers; results that may be masks keep the shards."""
        named = dict(kwargs or {})
        marked = [value for value in (*args, *named.values()) if isinstance(value, cls)]
        with torch._C.DisableTorchFunctionSubclass():
            if func is scaled_dot_product_attention:
                named.pop("attn_mask")
                return marked[0].shards.attention(*args, **named)
            result = func(*args, **named)
            is_mask = isinstance(result, Tensor) and not result.is_floating_point()
            return cls._with(marked[0].shards, result) if is_mask and marked else result


class _SplitPasses:
    """Hooks of a network that split its tokens before the blocks and put the video's together again after them."""

    def __init__(self, network: HunyuanVideoTransformer3DModel, group: dist.ProcessGroup) -> None:
        config = network.config
        self._group, self._patch = group, (config.patch_size_t, config.patch_size, config.patch_size)
        self._num_blocks = config.num_layers + config.num_single_layers
        self._shards: Shards  # of the pass that is running
        network.register_forward_pre_hook(self._begin, with_kwargs=True)
        network.context_embedder.register_forward_pre_hook(self._refine_all_text)
        network.context_embedder.register_forward_hook(self._own_text)
        network.x_embedder.register_forward_hook(self._own_video)
        network.rope.register_forward_hook(self._own_rotations)
        network.proj_out.register_forward_hook(self._all_video)

    def _begin(self, _module: nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        latents, text, mask = (inputs[name] for name in ("hidden_states", *_TEXT))
        if (missing := self._group.size() - text.shape[1]) > 0:  # a block needs at least one text token
            text, mask = pad(text, (0, 0, 0, missing)), pad(mask.as_subclass(Tensor), (0, missing))
        num_video = math.prod(size // patch for size, patch in zip(latents.shape[2:], self._patch, strict=True))
        self._shards = Shards.of(self._group, num_video, mask)
        split = dict(zip(_TEXT, (text, ShardedMask.of(self._shards)), strict=True))
        return args, {**inputs, **split, "hidden_states": same_on_all(latents, self._group)}

    def _refine_all_text(self, _module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """The text is short, so that every worker refines all of it."""
        text, timestep, _ = inputs
        return text, timestep, self._shards.text_mask

    def _own_text(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return self._shards.own(output, self._shards.text, dim=1)

    def _own_video(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return self._shards.own(output, self._shards.video, dim=1)

    def _own_rotations(self, _module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(self._shards.own(part, self._shards.video, dim=0) for part in output)

    def _all_video(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if len(self._shards.attended) != self._num_blocks:
            raise UserError(
                "sequence_parallel_size above 1: diffusers' attention leaves out the tokens of other workers; unset "
                "DIFFUSERS_ATTN_BACKEND, or use sequence_parallel_size = 1"
            )
        return self._shards.gather_video(output)


_TEXT = ("encoder_hidden_states", "encoder_attention_mask")  # a network's inputs


def _dtype_of_attention(value: Tensor) -> torch.dtype:
    """In bf16, norms make queries and keys float32, which attention would round: half of the bytes to exchange."""
    kind = value.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype


def _parts(num_tokens: int, num_parts: int) -> list[int]:
    """Lengths of parts that are as equal as possible."""
    return [num_tokens // num_parts + (part < num_tokens % num_parts) for part in range(num_parts)]
