from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from magic141.training.engines.ema import Ema
from tests.training.engines.test_engine import engine, train


def test_is_the_weighted_mean_without_the_start() -> None:
    network = nn.Linear(1, 1, bias=False)
    ema = Ema(network, decay=0.5)
    for value in (1.0, 2.0, 4.0):
        network.weight.data.fill_(value)
        ema.update()
    average = float(ema.state_dict()["shadow"]["weight"])
    assert average == pytest.approx((0.25 * 1 + 0.5 * 2 + 1 * 4) / 1.75)


def test_applied_gives_the_average_and_then_the_weights_back(tmp_path: Path) -> None:
    trained = engine(tmp_path)
    ema = Ema(trained.module, decay=0.9)
    for seed in range(3):
        train(trained, seed)
        ema.update()
    before = trained.full_state_dict()
    with ema.applied():
        inside = trained.full_state_dict()
    exported = ema.full_state_dict(trained)
    assert all(torch.equal(inside[name], exported[name]) for name in inside)
    assert all(torch.equal(before[name], value) for name, value in trained.full_state_dict().items())
    assert not torch.equal(inside["head.weight"], before["head.weight"])
    assert torch.equal(inside["base.weight"], before["base.weight"])


def test_half_precision_weights_are_averaged_in_fp32() -> None:
    network = nn.Linear(1, 1, bias=False).bfloat16()
    network.weight.data.fill_(1.0)
    ema = Ema(network, decay=0.999)
    ema.update()
    network.weight.data.fill_(1.0078125)  # the next bfloat16
    for _ in range(10):
        ema.update()
    assert 1.0 < float(ema.state_dict()["shadow"]["weight"]) < 1.0078125


def test_an_error_meanwhile_leaves_the_weights_and_not_the_average(tmp_path: Path) -> None:
    trained = engine(tmp_path)
    ema = Ema(trained.module, decay=0.9)
    for seed in range(2):
        train(trained, seed)
        ema.update()
    before = trained.full_state_dict()
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert all(torch.equal(before[name], value) for name, value in trained.full_state_dict().items())
