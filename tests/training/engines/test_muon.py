"""The batched Muon is torch's Muon in fewer kernel launches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from magic141.training.engines import muon
from magic141.training.engines.muon import BatchedMuon, orthogonalize, split_work
from tests.training.forks import run_together

SHAPES = ((8, 8), (8, 24), (24, 8), (8, 8))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.bfloat16, 2e-5),  # torch's own: a bf16 rounding of an update of size 1e-3
        (torch.float32, 1e-4),  # torch's are rounded, at every product
    ],
)
def test_same_updates_as_torchs_muon(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "working_dtype", lambda _: dtype)
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
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


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


def updated(shapes: Sequence[tuple[int, int]], num_workers: int) -> list[nn.Parameter]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = BatchedMuon(parameters, lr=0.1, num_workers=num_workers)
    for _ in range(2):
        for p in parameters:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return parameters


def share_and_compare(rank: int) -> None:
    for shapes in (SHAPES, SHAPES[:1]):  # of one matrix one worker has nothing to do
        for shared, alone in zip(updated(shapes, 2), updated(shapes, 1), strict=True):
            assert torch.equal(shared, alone)


@pytest.mark.slow  # starts processes
def test_workers_share_the_work_and_get_the_same_weights() -> None:
    run_together(share_and_compare, 2)


def test_work_is_shared_evenly_and_in_few_batches() -> None:
    shapes = [(96, 96), (384, 96)] * 13 + [(96, 480)] * 2
    shares = split_work(shapes, 2)
    assert sorted(shares[0] + shares[1]) == list(range(len(shapes)))
    work = [sum(min(shapes[i]) ** 2 * (min(shapes[i]) + 2 * max(shapes[i])) for i in share) for share in shares]
    assert abs(work[0] - work[1]) < 0.1 * sum(work)
    assert sum(len({shapes[i] for i in share}) for share in shares) == 4  # three shapes, one of them divided
