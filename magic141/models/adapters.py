"""Low-rank branches on the linear layers of a transformer's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

LORA = "branch"
_BASE = ".base_layer."


def train_lora(network: HunyuanVideoTransformer3DModel, rank: int, seed: int) -> None:
    """Leaves of `network`, in place, only a branch to be trained, and layers whose inputs may be new to it.

    These are the patch embedding, which reads the known frames, and the embedding of w; they become float32, too.
    """
    add_lora(network, rank, seed)
    for layer in (network.x_embedder, network.time_text_embed.guidance_embedder):
        if layer is not None:
            layer.requires_grad_(True).float()


def add_lora(network: HunyuanVideoTransformer3DModel, rank: int, seed: int) -> None:
    """Freezes `network` and adds a branch `LORA`, `W + BA`, to every linear layer of its blocks, in place.

    The branch is in float32, whatever the network is in.

    Args:
        network: the transformer.
        rank: rank of the branch, the number of rows of A.
        seed: seed of the initial A; B starts at zero, so that nothing changes until the first update.
    """
    network.requires_grad_(False)
    targets = [
        layer
        for layer, module in network.named_modules()
        if isinstance(module, nn.Linear) and "transformer_blocks." in layer
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), adapter_name=LORA)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in network.modules():
        if isinstance(module, LoraLayer):  # else ZeRO-3 keeps float32 copies of bf16 inputs: 3 GiB a clip at 13B
            module.cast_input_dtype_enabled = False


def share_frozen(network: nn.Module, owner: nn.Module) -> None:
    """Lets `network` use the frozen weights of `owner` in the place of its own frozen ones, of the same values.

    Either may have branches. At 13B this saves 24 GiB in bf16.

    Args:
        network: changed in place; what it trains stays its own.
        owner: a network of the same checkpoint, in its final place.
    """
    frozen = {_plain(name): value for name, value in owner.named_parameters() if not value.requires_grad}
    for name, value in network.named_parameters():
        shared = None if value.requires_grad else frozen.get(_plain(name))
        if shared is not None:
            assert (shared.shape, shared.dtype) == (value.shape, value.dtype), name
            value.data = shared.data


def _plain(name: str) -> str:
    """A weight's name in the network without branches."""
    return name.replace(_BASE, ".")


def merge_lora(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a plain network, from one with or without branches: `BA` is added to weights, names are restored.

    The sums are in float32: in bf16 most of what a branch has learnt would be rounded away.
    """
    merged = {}
    for key, value in state.items():
        if ".lora_A." in key or ".lora_B." in key:
            continue
        layer, found, rest = key.partition(_BASE)
        if found and rest == "weight":
            a, b = (state[f"{layer}.lora_{part}.{LORA}.weight"].float() for part in "AB")
            value = value.float() + b @ a
        merged[f"{layer}.{rest}" if found else key] = value
    return merged


def save_network(network: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Saves a plain network in diffusers' layout and fp32.

    Args:
        network: it, whatever engine wraps it.
        state: its weights, perhaps with branches, which are merged into them.
        folder: where.
    """
    with torch.device("meta"):  # no second copy in memory
        clean = HunyuanVideoTransformer3DModel.from_config(network.config)
    clean.load_state_dict({name: value.float() for name, value in merge_lora(state).items()}, assign=True)
    clean.save_pretrained(folder)
