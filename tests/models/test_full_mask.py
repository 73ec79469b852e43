"""Batches without padding are evaluated without masks, and as with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from magic141.models.text_embedding import TextEmbedding
from magic141.models.transformer import Conditioning, condition, make_prefix, velocity
from tests.models.tiny import CHANNELS, POOLED, TEXT, tiny_transformer


class Attentions(TorchDispatchMode):
    """For every attention that is computed, whether it has a mask."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.masked: list[bool] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if "scaled_dot_product" in str(func) and "backward" not in str(func):
            self.masked.append((kwargs or {}).get("attn_mask") is not None)
        return func(*args, **(kwargs or {}))


def conditions(lengths: Sequence[int], image: bool) -> Conditioning:
    """Captions of these many valid tokens out of 6, for I2V after 3 image tokens."""
    rng = torch.Generator().manual_seed(2)
    num, mask = len(lengths), torch.arange(6) < torch.tensor(lengths)[:, None]
    text = TextEmbedding(torch.randn(num, 6, TEXT, generator=rng), mask, torch.randn(num, POOLED, generator=rng))
    return condition(text, torch.randn(num, 3, TEXT, generator=rng) if image else None)


def evaluate(cond: Conditioning, image: bool, checkpointing: bool) -> tuple[dict[str, Tensor], list[bool]]:
    """Output and gradients, and whether attentions have masks, those that checkpointing computes again too."""
    model = tiny_transformer(image_condition=image).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    rng = torch.Generator().manual_seed(1)
    x_t = torch.randn(len(cond.tokens), CHANNELS, 3, 2, 2, generator=rng)
    prefix = make_prefix(x_t, 1) if image else None
    with Attentions() as attentions:
        v = velocity(model, x_t, torch.rand(len(x_t), generator=rng), cond, prefix)
    with torch.no_grad():  # a batch with padding before the first one's blocks are computed again
        velocity(model, x_t, torch.ones(len(x_t)), conditions([1] * len(x_t), image), prefix)
    with attentions:
        v.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert type(v) is Tensor
    return {"velocity": v.detach(), **gradients}, attentions.masked


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("lengths", [[4], [4, 4, 4], [6, 6]])
def test_without_padding_there_are_no_masks_and_the_same_output_and_gradients(
    lengths: list[int], image: bool, checkpointing: bool
) -> None:
    cond = conditions(lengths, image)
    expected, masked = evaluate(cond, image, checkpointing)
    found, unmasked = evaluate(cond.trimmed(), image, checkpointing)
    assert all(masked)
    assert unmasked == [False] * len(masked)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


def test_batches_with_padding_stay_as_they_are_and_so_does_everything_on_cpus() -> None:
    uneven, even = conditions([4, 2, 6], image=True), conditions([4, 4], image=True)
    assert uneven.trimmed() is uneven
    assert even.to(torch.device("cpu")).mask is even.mask


def test_conditions_lose_their_padding_on_the_way_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "to", lambda tensor, device: tensor)
    cond = conditions([4, 4], image=True)
    there = cond.to(torch.device("cuda"))
    assert there.mask is None
    assert torch.equal(there.tokens, cond.tokens[:, :7])
    assert there.part(slice(1)).to(torch.device("cuda")).mask is None
