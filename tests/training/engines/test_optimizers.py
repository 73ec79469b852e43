from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from magic141.training.config import OptimizerConfig
from magic141.training.engines.optimizers import (
    MuonAdamW,
    is_block_matrix,
    learning_rate_factor,
    make_optimizer,
    set_learning_rate,
)
from tests.training.linear import Network


def schedule(num_steps: int, **settings: float) -> list[float]:
    config = OptimizerConfig.model_validate(settings)
    return [learning_rate_factor(step, num_steps, config) for step in range(num_steps)]


def test_schedule_warms_up_holds_and_decays_to_the_final_fraction() -> None:
    rates = schedule(100, warmup_steps=10, constant_fraction=0.4, final_fraction=0.03)
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert set(rates[10:41]) == {1.0}
    assert rates[41:] == sorted(rates[41:], reverse=True)
    assert rates[-1] == pytest.approx(0.03)
    assert rates[70] == pytest.approx(1 - 0.97 * (70 - 40) / (99 - 40))


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_schedule_of_a_run_shorter_than_its_warmup_is_positive(num_steps: int) -> None:
    assert all(0 < rate <= 1 for rate in schedule(num_steps, warmup_steps=100))


def test_muon_takes_the_matrices_in_blocks_only() -> None:
    taken = {name for name, p in Network().named_parameters() if is_block_matrix(name, p)}
    assert taken == {"blocks.0.weight"}
    assert is_block_matrix("single_transformer_blocks.3.attn.to_q.weight", nn.Parameter(torch.ones(2, 2)))
    assert not is_block_matrix("proj_out.weight", nn.Parameter(torch.ones(2, 2)))


@pytest.mark.parametrize("final_fraction", [0.0, 0.5])
def test_the_scheduled_rate_reaches_both_parts(final_fraction: float) -> None:
    network, config = Network(), OptimizerConfig(kind="muon", warmup_steps=0, final_fraction=final_fraction)
    optimizer = make_optimizer(dict(network.named_parameters()), config)
    assert isinstance(optimizer, MuonAdamW)
    network(torch.randn(4, 8)).mean().backward()
    set_learning_rate(optimizer, 99, 100, config)
    assert {group["lr"] for group in optimizer.param_groups} == {final_fraction * config.learning_rate}
    trained = [p for p in network.parameters() if p.grad is not None]
    before = [p.detach().clone() for p in trained]
    optimizer.step()
    stayed = {torch.equal(a, b) for a, b in zip(before, trained, strict=True)}
    assert stayed == {final_fraction == 0}, "all of them"


def test_both_parts_go_on_from_a_saved_state_and_take_another_rate() -> None:
    networks, config = (Network(), Network()), OptimizerConfig(kind="muon")
    straight, resumed = (make_optimizer(dict(network.named_parameters()), config) for network in networks)

    def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> list[torch.Tensor]:
        optimizer.zero_grad()
        network(torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))).mean().backward()
        optimizer.step()
        return [p.detach().clone() for p in network.parameters()]

    step(networks[0], straight, 0)
    networks[1].load_state_dict(networks[0].state_dict())
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    expected, got = step(networks[0], straight, 1), step(networks[1], resumed, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for group in resumed.param_groups:
        group["lr"] = 0.0
    torch.testing.assert_close(step(networks[1], resumed, 2), got, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_betas_are_adamws(kind: str) -> None:
    config = OptimizerConfig.model_validate({"kind": kind, "betas": (0.7, 0.8)})
    *_, adamw = make_optimizer(dict(Network().named_parameters()), config).param_groups
    assert adamw["betas"] == (0.7, 0.8)


def test_muon_matches_torchs_on_every_shape() -> None:
    torch.manual_seed(0)
    shapes = [(8, 8), (8, 24), (24, 8), (8, 8)]
    ours = {f"blocks.{k}.w": nn.Parameter(torch.randn(shape)) for k, shape in enumerate(shapes)}
    theirs = [nn.Parameter(p.detach().clone()) for p in ours.values()]
    optimizer = make_optimizer(ours, OptimizerConfig(kind="muon", learning_rate=0.01, weight_decay=0.1))
    reference = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for mine, other in zip(ours.values(), theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    for mine, other in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=5e-4)  # Newton-Schulz runs in bfloat16
