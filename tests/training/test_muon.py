"""The batched Muon is torch's Muon, bit for bit, in fewer kernel launches."""

from __future__ import annotations

import torch
from torch import nn

from magic141.training.muon import BatchedMuon, orthogonalize

SHAPES = ((8, 8), (8, 24), (24, 8), (8, 8))


def test_same_updates_as_torchs_muon() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    batched = BatchedMuon(ours, lr=2e-3, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=2e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        batched.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)  # a bf16 rounding of an update of size 1e-3


def test_update_is_nearly_orthogonal() -> None:
    x = orthogonalize(torch.randn(3, 16, 48)).float()
    singular = torch.linalg.svdvals(x)
    assert float(singular.min()) > 0.5
    assert float(singular.max()) < 1.4


def test_a_matrix_without_a_gradient_stays() -> None:
    p = nn.Parameter(torch.randn(4, 4))
    before = p.detach().clone()
    BatchedMuon([p], lr=1.0).step()
    assert torch.equal(p, before)
