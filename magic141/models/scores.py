"""The real and the fake score of DMD2 on one frozen base with one low-rank branch at two strengths.

`theta_real = theta_0 + a_weak*BA`, `theta_fake = theta_0 + a_strong*BA` (paper, section 3.1): the base exists once in
memory, only B and A are trained, and the real score is shifted a little towards the fake one, which keeps it from
judging inputs that it never saw in pretraining. `a_weak = 0` is plain DMD2.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from magic141.models.transformer import Conditioning, Prefix, velocity

ADAPTER = "fake"


class SharedScores(nn.Module):
    """Two velocity networks that share everything but the strength of one adapter."""

    def __init__(
        self, base: HunyuanVideoTransformer3DModel, rank: int, a_weak: float, a_strong: float, seed: int = 0
    ) -> None:
        """Freezes `base` and adds the adapter to every linear layer of its blocks.

        Args:
            base: the pretrained transformer; changed in place.
            rank: of the adapter.
            a_weak: its strength in the real score.
            a_strong: its strength in the fake score.
            seed: of the adapter's initial A (B starts at zero).
        """
        super().__init__()
        base.requires_grad_(False)
        targets = [
            name
            for name, module in base.named_modules()
            if isinstance(module, nn.Linear) and "transformer_blocks." in name
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), adapter_name=ADAPTER)
        self.network = base.eval()
        self.a_weak = a_weak
        self.a_strong = a_strong

    def set_strength(self, strength: float) -> None:
        """Scales the low-rank branch; 0 gives the base bit for bit."""
        for module in self.network.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(ADAPTER, strength)

    @torch.no_grad()
    def real(
        self, x_t: Tensor, sigma: Tensor, cond: Conditioning, prefix: Prefix | None, guidance_scale: Tensor | None
    ) -> Tensor:
        """The real score's velocity, [B, C, T, h, w], never with a gradient."""
        self.set_strength(self.a_weak)
        return velocity(self.network, x_t, sigma, cond, prefix, guidance_scale)

    def forward(self, **inputs: Any) -> Any:
        """The fake score's network, as an engine calls it: the adapter at `a_strong`."""
        self.set_strength(self.a_strong)
        return self.network(**inputs)

    def adapter_state(self) -> dict[str, Tensor]:
        """The trained tensors only."""
        return {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `adapter_state`."""
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in state.items():
                parameters[name].copy_(value)
