"""The adversarial losses of step distillation: a head on the fake score's features tells real from generated clips.

The abstract names "adversarial step distillation" without details. This is DMD2's form (Yin et al. 2024, section 4.4),
with the head where the sibling paper draws it, after the last double-stream block.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """`-log D(real) - log(1 - D(generated))` of logits of any shape; 2*log 2 for a head that cannot tell them apart."""
    return softplus(-real).mean() + softplus(generated).mean()


def generator_loss(generated: Tensor) -> Tensor:
    """`-log D(generated)` of logits of any shape: the non-saturating loss."""
    return softplus(-generated).mean()
