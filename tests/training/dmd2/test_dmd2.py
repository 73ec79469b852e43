"""The steps of DMD2: who learns when, and from which clips."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from magic141.training.batches import Batch
from magic141.training.dmd2.backward_simulation import BackwardSimulation, Generated
from magic141.training.dmd2.networks import Guidance, GuidedScores
from magic141.training.random_numbers import step_generator
from tests.training.dmd2.tiny import PLACEMENT, build, weights


def test_real_score_is_frozen_and_the_generator_does_not_learn_from_fake_updates(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, adversarial_weight=0.01)
    batch = dmd2.maker.make(torch.arange(4), step_generator(0, 0))
    w = Guidance.fixed(dmd2.config, 4)
    generator = weights(dmd2.generator.module)
    base = dmd2.guided.base(batch.x0, torch.full((4,), 0.5), batch, w)
    dmd2.step(0)
    after = weights(dmd2.generator.module)
    dmd2.fake_updates.run(3, step_generator(0, 1))
    assert all(torch.equal(after[name], value) for name, value in weights(dmd2.generator.module).items())
    assert any(not torch.equal(generator[name], value) for name, value in after.items())
    assert torch.equal(dmd2.guided.base(batch.x0, torch.full((4,), 0.5), batch, w), base)


def test_the_exit_step_is_the_same_on_all_ranks(folders: Path, tmp_path: Path) -> None:
    """Ranks see other clips and noise, but a ZeRO-3 network must be called equally often everywhere."""
    calls = []
    for rank in range(2):
        dmd2 = build(folders, tmp_path)
        dmd2.context = replace(dmd2.context, rank=rank, world_size=2)
        batch, w = dmd2.maker.make(torch.arange(2), step_generator(0, 0, rank)), Guidance.fixed(dmd2.config, 2)
        seen: list[Tensor] = []
        dmd2.generator.module.register_forward_pre_hook(lambda *_, seen=seen: seen.append(torch.ones(())))
        for step in range(12):
            dmd2.chain.state(batch, w, dmd2.draw_exit(step).exit_step, step_generator(0, step, rank))
        calls.append(len(seen))
    assert calls[0] == calls[1] > 12


def test_the_fake_score_learns_from_the_clips_that_the_generator_learns_from(folders: Path, tmp_path: Path) -> None:
    """The exit step is taken twice, so that no graph of the generator waits for the fake updates to end."""
    dmd2 = build(folders, tmp_path)
    batch, w = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), Guidance.fixed(dmd2.config, 4)
    state = dmd2.chain.state(batch, w, 2, step_generator(0, 1))
    made, again = dmd2.chain.generate(state, batch, w, 2), dmd2.chain.clean_estimate(state, batch, w)
    assert torch.equal(made.x0, again.detach())
    assert again.requires_grad
    assert not made.x0.requires_grad


def test_the_fake_score_learns_of_an_exit_from_the_clips_that_left_there(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, exit_embedding=True)
    batch, w = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), Guidance.fixed(dmd2.config, 4)
    dmd2.fake_updates.replay.append(Generated(batch.x0, batch, w, exit_step=2))
    dmd2.fake_updates.run(3, step_generator(0, 1))
    assert dmd2.scores.exits is not None
    moved = dmd2.scores.exits.weight.detach().abs().amax(1) > 0
    assert moved.tolist() == [False, False, True, False]


def test_the_fake_score_learns_from_all_kept_batches(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dmd2 = build(folders, tmp_path)
    w, seen = Guidance.fixed(dmd2.config, 4), []
    batches = [dmd2.maker.make(torch.arange(4), step_generator(0, step)) for step in range(3)]
    dmd2.fake_updates.replay.extend(Generated(batch.x0, batch, w, exit_step=3) for batch in batches)
    fake = GuidedScores.fake

    def spy(scores: GuidedScores, network: Any, x_t: Tensor, sigma: Tensor, batch: Batch, w: Guidance) -> Tensor:
        seen.append(batch)
        return fake(scores, network, x_t, sigma, batch, w)

    monkeypatch.setattr(GuidedScores, "fake", spy)
    dmd2.fake_updates.run(20, step_generator(0, 1))
    assert {id(batch) for batch in seen} == {id(batch) for batch in batches}


def test_as_many_generator_batches_are_kept_as_the_config_says(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, replay_batches=2, num_steps=3, fake_warmup_updates=0)
    kept = []
    for step in range(3):
        dmd2.step(step)
        kept.append(len(dmd2.fake_updates.replay))
    assert kept == [1, 2, 2]


def test_batches_kept_by_other_workers_are_not_replayed(folders: Path, tmp_path: Path) -> None:
    """A run that goes on with fewer workers: a worker's old batches have fewer clips than its new ones."""
    alone = {**PLACEMENT, "clips_per_pass": 2}
    before, after = (build(folders, tmp_path, batch_size=size, placement=alone) for size in (2, 4))
    for step in range(before.first_step, 1):
        before.step(step)
    after.load_state_dict({**before.state_dict(), "ema": after.ema.state_dict()})
    assert len(before.fake_updates.replay) == 2, "the warm-up's and the step's"
    assert len(after.fake_updates.replay) == 0
    after.step(1)
    assert len(after.fake_updates.replay[0].x0) == 4


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_fake_update_that_was_left_out_shows(folders: Path, tmp_path: Path, broken: float) -> None:
    """The generator's own norm is fine, and the fake score would stay what it was without anyone knowing."""
    dmd2, factors = build(folders, tmp_path), iter((broken, 1.0))  # of the first of two updates only
    (some, *_) = (p for p in dmd2.fake.module.parameters() if p.requires_grad)
    some.register_hook(lambda gradient: gradient * next(factors))
    values = dmd2.step(0)
    assert math.isfinite(values["grad_norm"])
    assert not math.isfinite(values["fake_grad_norm"])


def test_the_scores_are_told_where_the_generators_clips_left(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not where those of the last fake update did."""
    dmd2, told = build(folders, tmp_path, num_steps=6, exit_embedding=True), []
    gradient = dmd2.distribution_matching_gradient

    def watched(*inputs: Any) -> Tensor:
        told.append(dmd2.scores._exit_step)
        return gradient(*inputs)

    monkeypatch.setattr(dmd2, "distribution_matching_gradient", watched)
    for step in range(6):
        dmd2.step(step)
    assert told == [dmd2.draw_exit(step).exit_step for step in range(6)]


def test_the_fake_score_warms_up_before_the_first_generator_update_alone(folders: Path, tmp_path: Path) -> None:
    dmd2, updates = build(folders, tmp_path, fake_warmup_updates=3), []
    for step in range(dmd2.first_step, 2):
        dmd2.step(step)
        updates.append((dmd2.fake.num_updates, dmd2.generator.num_updates))
    assert updates == [(2, 0), (3, 0), (3 + 2, 1), (3 + 2 + 2, 2)]


def test_both_schedules_end_with_the_last_update(folders: Path, tmp_path: Path) -> None:
    """The fake score's counts its warm-up and all of its updates of a step."""
    decay = {"kind": "adamw", "learning_rate": 1e-3, "warmup_steps": 0, "constant_fraction": 0.0, "final_fraction": 0.1}
    dmd2 = build(folders, tmp_path, fake_warmup_updates=3, optimizer=decay, fake_optimizer=decay)
    for step in range(dmd2.first_step, dmd2.config.num_steps):
        assert min(map(learning_rate, (dmd2.fake, dmd2.generator))) > 2e-4
        dmd2.step(step)
    assert [learning_rate(dmd2.fake), learning_rate(dmd2.generator)] == pytest.approx([1e-4, 1e-4])


def learning_rate(engine: Any) -> float:
    """Of the newest update."""
    (rate,) = {group["lr"] for group in engine._optimizer.param_groups}
    return float(rate)


def test_every_pass_of_a_step_is_in_the_precision_of_the_config(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, precision="bf16", adversarial_weight=0.01, real_guidance_scale=2.0)
    passes: list[bool] = []
    for network in (dmd2.generator.module, dmd2.scores):
        network.register_forward_pre_hook(lambda *_: passes.append(torch.is_autocast_enabled("cpu")))
    for step in range(dmd2.first_step, 1):
        dmd2.step(step)
    dmd2.validate()
    assert all(passes)
    assert len(passes) > 10


def test_the_fake_score_warms_up_on_clips_that_no_step_takes(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, fake_warmup_updates=5)
    dmd2.sampler = Mock(indices=Mock(return_value=torch.arange(4)))
    for step in range(dmd2.first_step, 2):
        dmd2.step(step)
    places = [call.args[0] for call in dmd2.sampler.indices.call_args_list]
    assert places == [2, 4, 6, 0, 1], "the last two are the steps'"


def test_the_fake_score_warms_up_on_new_clips_as_often_as_later(folders: Path, tmp_path: Path) -> None:
    """Trained on one batch alone, it would know those clips, and not what the student makes."""
    dmd2 = build(folders, tmp_path, fake_warmup_updates=5, replay_batches=9)
    for step in range(dmd2.first_step, 1):
        dmd2.step(step)
    first, *others = list(dmd2.fake_updates.replay)
    assert 1 + len(others) == 3 + 1, "of 2, 2 and 1 updates, and the first step's own"
    assert all(not torch.equal(first.batch.x0, other.batch.x0) for other in others)


def test_clips_that_are_not_finite_cost_their_step_and_no_other(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept for the fake score, they would break its gradient in later steps, too."""
    dmd2 = build(folders, tmp_path, fake_warmup_updates=0)
    generate = BackwardSimulation.generate

    def broken(*inputs: Any) -> Generated:
        made = generate(*inputs)
        return replace(made, x0=made.x0 * torch.tensor([1.0, torch.nan, 1.0, 1.0]).reshape(4, 1, 1, 1, 1))

    before = weights(dmd2.generator.module) | weights(dmd2.scores)
    with monkeypatch.context() as patch:
        patch.setattr(BackwardSimulation, "generate", broken)
        values = dmd2.step(0)
    assert math.isnan(values["grad_norm"])
    after = weights(dmd2.generator.module) | weights(dmd2.scores)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(math.isfinite(value) for value in dmd2.step(1).values())
    dmd2.validate()
    assert (tmp_path / "images" / "student_real_fake-000002.png").is_file(), "at the step of the metrics"


def test_clips_that_are_broken_on_one_worker_are_kept_on_none(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that trained on its own while the others leave the step out would wait for them for ever."""
    dmd2 = build(folders, tmp_path)
    batch, w = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), Guidance.fixed(dmd2.config, 4)
    made = Generated(batch.x0, batch, w, exit_step=0)
    assert dmd2.fake_updates.replay_if_finite(made)
    of_two = replace(dmd2.fake_updates, context=replace(dmd2.context, world_size=2))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda broken: broken.add_(1))  # of the other worker's clips
    assert not of_two.replay_if_finite(made)
    assert len(dmd2.fake_updates.replay) == 1
