"""One base, one adapter, two strengths."""

from __future__ import annotations

import pytest
import torch

from magic141.models.transformer import make_prefix, velocity
from magic141.training.dmd2.score_networks import SeparateScores, SharedScores
from tests.models.tiny import tiny_inputs, tiny_transformer


def make_scores(a_weak: float, a_strong: float = 1.0) -> SharedScores:
    scores = SharedScores(tiny_transformer(image_condition=True, guidance_embeds=True), 4, a_weak, a_strong, seed=0)
    for parameter in scores.parameters():
        if parameter.requires_grad:  # as after some training: B is not zero
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
    return scores


def evaluate(scores: SharedScores) -> tuple[torch.Tensor, torch.Tensor]:
    x_t, sigma, cond = tiny_inputs()
    w = torch.full((3,), 1.5)
    prefix = make_prefix(x_t, 1)
    fake = velocity(scores, x_t, sigma, cond, prefix, w).detach()
    return velocity(scores.real(), x_t, sigma, cond, prefix, w), fake


def test_equal_strengths_give_equal_scores() -> None:
    real, fake = evaluate(make_scores(a_weak=0.7, a_strong=0.7))
    assert torch.equal(real, fake)


def test_strength_zero_is_the_base_bit_for_bit() -> None:
    real, fake = evaluate(make_scores(a_weak=0.0))
    base = tiny_transformer(image_condition=True, guidance_embeds=True)
    x_t, sigma, cond = tiny_inputs()
    expected = velocity(base, x_t, sigma, cond, make_prefix(x_t, 1), torch.full((3,), 1.5))
    assert torch.equal(real, expected.detach())
    assert not torch.allclose(fake, expected)


def test_the_many_step_model_is_the_base_whatever_the_fake_score_has_learnt() -> None:
    x_t, sigma, cond = tiny_inputs()
    prefix, w = make_prefix(x_t, 1), torch.full((3,), 1.5)
    expected = velocity(tiny_transformer(image_condition=True, guidance_embeds=True), x_t, sigma, cond, prefix, w)
    assert torch.equal(velocity(make_scores(a_weak=0.5).base(), x_t, sigma, cond, prefix, w), expected)


def test_only_the_adapter_has_gradients_and_the_base_never_changes() -> None:
    scores = make_scores(a_weak=0.5)
    base = {name: p.clone() for name, p in scores.named_parameters() if not p.requires_grad}
    x_t, sigma, cond = tiny_inputs()
    trained = [p for p in scores.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    velocity(scores, x_t, sigma, cond, make_prefix(x_t, 1), torch.ones(3)).square().mean().backward()
    optimizer.step()
    for name, parameter in scores.named_parameters():
        assert (parameter.grad is not None) == ("lora" in name), name
        if name in base:
            assert torch.equal(parameter, base[name]), name


def test_separate_scores_start_equal_and_only_the_fake_one_moves() -> None:
    scores = SeparateScores(tiny_transformer(image_condition=True))
    x_t, sigma, cond = tiny_inputs()
    prefix = make_prefix(x_t, 1)
    real = velocity(scores.real(), x_t, sigma, cond, prefix, None)
    assert torch.equal(velocity(scores, x_t, sigma, cond, prefix).detach(), real)
    assert not any(p.requires_grad for p in scores.real_network.parameters()), "an optimizer would decay them"
    optimizer = torch.optim.SGD([p for p in scores.parameters() if p.requires_grad], lr=0.1)
    velocity(scores, x_t, sigma, cond, prefix).square().mean().backward()
    optimizer.step()
    assert torch.equal(velocity(scores.real(), x_t, sigma, cond, prefix, None), real)
    assert not torch.allclose(velocity(scores, x_t, sigma, cond, prefix), real)


def test_the_fake_score_is_told_the_exit_and_the_base_is_not() -> None:
    scores = make_scores(a_weak=0.0)
    scores.add_exits(4)
    assert scores.exits is not None
    base, untold = evaluate(scores)
    torch.nn.init.normal_(scores.exits.weight, generator=torch.Generator().manual_seed(4))
    fakes = []
    for exit_step in range(4):
        scores.set_exit(exit_step)
        real, fake = evaluate(scores)
        assert torch.equal(real, base)
        fakes.append(fake)
    assert all(not torch.allclose(fake, other) for fake in fakes for other in (*fakes, untold) if fake is not other)


def test_a_fake_score_of_its_own_is_told_the_exit_too() -> None:
    scores = SeparateScores(tiny_transformer(image_condition=True).eval())
    scores.add_exits(2)
    assert scores.exits is not None
    x_t, sigma, cond = tiny_inputs()
    prefix = make_prefix(x_t, 1)
    real = velocity(scores.real(), x_t, sigma, cond, prefix, None)
    torch.nn.init.constant_(scores.exits.weight[1], 1.0)
    for exit_step in range(2):
        scores.set_exit(exit_step)
        assert torch.equal(velocity(scores, x_t, sigma, cond, prefix), real) == (exit_step == 0)
        assert torch.equal(velocity(scores.real(), x_t, sigma, cond, prefix, None), real)


def test_equal_strengths_give_equal_scores_at_an_exit_too() -> None:
    scores = make_scores(a_weak=0.7, a_strong=0.7)
    scores.add_exits(2)
    assert scores.exits is not None
    torch.nn.init.normal_(scores.exits.weight, generator=torch.Generator().manual_seed(4))
    scores.set_exit(1)
    real, fake = evaluate(scores)
    assert torch.equal(real, fake)


def test_half_the_strength_is_half_of_what_was_learnt_of_an_exit() -> None:
    velocities = []
    for strength, learnt in ((0.5, 2.0), (1.0, 1.0)):
        scores = SharedScores(tiny_transformer(image_condition=True), 4, a_weak=strength, a_strong=1.0, seed=0)
        scores.add_exits(2)
        assert scores.exits is not None
        torch.nn.init.constant_(scores.exits.weight, learnt)
        x_t, sigma, cond = tiny_inputs()
        velocities.append(velocity(scores.real(), x_t, sigma, cond, make_prefix(x_t, 1), None))
    assert torch.equal(*velocities)


def test_the_head_judges_every_token_of_the_last_input_after_the_last_double_stream_block() -> None:
    scores = SharedScores(tiny_transformer(image_condition=True, num_layers=2), 4, a_weak=0.5, a_strong=1.0, seed=0)
    scores.add_head(seed=0)
    features: list[torch.Tensor] = []
    scores.network.transformer_blocks[1].register_forward_hook(lambda _, _inputs, output: features.append(output[0]))
    x_t, sigma, cond = tiny_inputs()
    velocity(scores, x_t, sigma, cond, make_prefix(x_t, 1))
    logits = scores.logits()
    assert logits.shape == (3, x_t[0, 0].numel())
    assert scores.head is not None
    assert torch.equal(logits, scores.head(features[0]))
    with pytest.raises(AssertionError):
        scores.logits()  # each forward pass is judged once


def test_adapter_and_head_start_as_their_seed_says() -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        scores = SharedScores(tiny_transformer(), 4, a_weak=0.5, a_strong=1.0, seed=seed)
        scores.add_head(seed)
        return {name: value for name, value in scores.state_dict().items() if "lora_A" in name or "layers.1." in name}

    first, again, other = start(1), start(1), start(2)
    assert {name.startswith("head") for name in first} == {True, False}
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first)
