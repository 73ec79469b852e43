"""The real and the fake score of DMD2: one frozen base with a low-rank branch, or two whole networks.

On a shared base (paper, section 3.1), `theta_real = theta_0 + a_weak*BA` and `theta_fake = theta_0 + a_strong*BA`. The
base is in memory once, only B and A are trained, and the real score is shifted a little towards the fake one, which
keeps it from judging inputs that it never saw in pretraining. `a_weak = 0` is plain DMD2.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from magic141.models.adapters import LORA, add_lora
from magic141.models.sequence_parallel import all_video_tokens


class Scores(nn.Module, ABC):
    """Base class: the network that is trained as the fake score, and its features for a discriminator.

    Attributes:
        network: evaluates the fake score; its trained part has gradients.
        strength: weight, in the next evaluation of `network`, of what the fake score has learnt.
        head: discriminator on features of the fake score; None unless `add_head` was called.
        exits: embedding of the step at which a clip left the chain; None unless `add_exits` was called.
    """

    def __init__(self, network: HunyuanVideoTransformer3DModel) -> None:
        super().__init__()
        self.network = network
        self.strength = 1.0
        self.head: Head | None = None
        self.exits: nn.Embedding | None = None
        self._exit_step = 0
        self._features: Tensor | None = None

    @abstractmethod
    def real(self) -> Callable[..., Any]:
        """The network of the real score."""

    @abstractmethod
    def base(self) -> Callable[..., Any]:
        """The network as it was given."""

    def forward(self, **inputs: Any) -> Any:
        """Evaluates the fake score's network; engines call this."""
        return self.network(**inputs)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass."""
        self.network.enable_gradient_checkpointing()

    def add_head(self, seed: int) -> None:
        """Adds a discriminator on the features after the last double-stream block."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = Head(_width(self.network))
        self.network.transformer_blocks[-1].register_forward_hook(self._keep)

    def logits(self) -> Tensor:
        """The head's logits [B, tokens] for the input evaluated last; call it right after that forward pass."""
        features, self._features = self._features, None
        assert self.head is not None
        assert features is not None
        return torch.as_tensor(self.head(features))

    def add_exits(self, num_exits: int) -> None:
        """Adds to the time embedding one, zero at first, of the exit step at which clips left the student's chain.

        Why the fake score has to tell the exits apart: `exit_shares`.
        """
        self.exits = nn.Embedding(num_exits, _width(self.network))
        nn.init.zeros_(self.exits.weight)
        self.network.time_text_embed.register_forward_hook(self._add_exit)

    def set_exit(self, exit_step: int) -> None:
        """Sets the 0-based step at which the clips of the next evaluations left the chain."""
        self._exit_step = exit_step

    def _add_exit(self, _module: nn.Module, _inputs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.strength == 0:
            return output
        time_embedding, *others = output
        assert self.exits is not None
        learnt = self.exits(torch.tensor(self._exit_step, device=time_embedding.device))
        return (time_embedding + self.strength * learnt.to(time_embedding.dtype), *others)

    def _keep(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        _hidden, _text, _temb, attention_mask, *_ = inputs
        self._features = all_video_tokens(output[0], attention_mask)


class SharedScores(Scores):
    """Two scores on one network, which differ only in the strength of its adapter."""

    def __init__(
        self, base: HunyuanVideoTransformer3DModel, rank: int, a_weak: float, a_strong: float, seed: int
    ) -> None:
        """Freezes `base` and adds the adapter to every linear layer of its blocks.

        Args:
            base: the pretrained transformer; changed in place.
            rank: rank of the adapter.
            a_weak: the adapter's strength in the real score.
            a_strong: the adapter's strength in the fake score.
            seed: seed of the adapter's initial A (B starts at zero).
        """
        add_lora(base, rank, seed)
        super().__init__(base.eval())
        self.a_weak = a_weak
        self.a_strong = a_strong

    def set_strength(self, strength: float) -> None:
        """Scales everything that the fake score has learnt; 0 gives the base bit for bit."""
        self.strength = strength
        for module in self.network.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(LORA, strength)

    def real(self) -> Callable[..., Any]:
        """The network with the adapter at `a_weak`."""
        return partial(self, self.a_weak)

    def base(self) -> Callable[..., Any]:
        """The network with the adapter at 0."""
        return partial(self, 0.0)

    def forward(self, strength: float | None = None, **inputs: Any) -> Any:
        """Evaluates the network with the adapter at `strength`, `a_strong` if none is given.

        All evaluations come here: DeepSpeed follows a pass from the root module on, to fetch split weights in time.
        """
        self.set_strength(self.a_strong if strength is None else strength)
        return self.network(**inputs)


class SeparateScores(Scores):
    """Plain DMD2: a frozen real score, and a full copy of it that is trained as the fake score."""

    def __init__(self, base: HunyuanVideoTransformer3DModel) -> None:
        """Freezes `base` as the real score and copies it as the fake one."""
        super().__init__(copy.deepcopy(base).train())
        self.real_network: nn.Module = base.eval().requires_grad_(False)

    def real(self) -> Callable[..., Any]:
        """The frozen network."""
        return self.real_network

    base = real


class Head(nn.Module):
    """A discriminator head: one logit per token, from the fake score's features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, tokens] of features [B, tokens, width]."""
        return torch.as_tensor(self.layers(features)[..., 0])


def _width(network: HunyuanVideoTransformer3DModel) -> int:
    return int(network.config.num_attention_heads * network.config.attention_head_dim)
