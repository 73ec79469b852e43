"""The whole DMD2 objective on a tiny corpus, with each of its options."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magic141.diffusion.flow import interpolate
from magic141.diffusion.samplers import randn_like
from magic141.models.transformer import load_transformer
from magic141.stage_log import NullLog
from magic141.training.batches import Batch
from magic141.training.dmd2.backward_simulation import BackwardSimulation, Generated
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.dmd2 import Dmd2
from magic141.training.dmd2.networks import Guidance, GuidedScores
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.dmd2.validation import ROWS, with_row_names
from magic141.training.launch import launch
from magic141.training.random_numbers import step_generator
from magic141.training.train import train
from tests.evaluation.artifacts import RecordingLog
from tests.models.tiny import CONFIG
from tests.training.dmd2.tiny import OPTIONS, PLACEMENT, SHORT, build, weights


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_trains_judges_and_exports_a_plain_transformer(
    folders: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    dmd2 = build(folders, tmp_path, **options)
    before = weights(dmd2.generator.module)
    for step in range(2):
        values = dmd2.step(step)
        assert all(torch.isfinite(torch.as_tensor(value)) for value in values.values()), values
        dmd2.judge(step + 1, dmd2.validate())
    moved = [name for name, value in dmd2.generator.module.state_dict().items() if not torch.equal(value, before[name])]
    assert moved
    if dmd2.config.generator_lora_rank:
        assert all("lora_" in name for name in moved)
    out = tmp_path / "out"
    out.mkdir()
    dmd2.export(out)
    student = load_transformer(out / "transformer")
    assert student.config.guidance_embeds
    assert str(folders) not in (out / "transformer" / "config.json").read_text()  # equal work is equal everywhere
    watched = json.loads((out / "watch.json").read_text())
    assert watched["exported_step"] == (2 if dmd2.config.keep == "last" else watched["best_step"])
    assert (tmp_path / "images" / "student_real_fake-000001.png").is_file()


@pytest.mark.parametrize("height", [68, 324])
def test_every_row_of_a_sheet_has_its_name_beside_it(height: int) -> None:
    sheet = np.full((6 * height, 90, 3), 128, np.uint8)
    named = with_row_names(sheet, 6, ROWS)
    margin = named[:, :-90].reshape(6, height, -1, 3)
    assert np.array_equal(named[:, -90:], sheet)
    assert np.array_equal(margin[:3], margin[3:]), "the clips' rows are named alike"
    student, real, fake = ((row < 128).any(axis=2) for row in margin[:3])
    assert student.any(axis=1).sum() >= max(8, height // 10), "large enough to read"
    assert not (student == real).all()
    assert not (real == fake).all()


def test_real_score_is_frozen_and_the_generator_does_not_learn_from_fake_updates(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, adversarial_weight=0.01)
    batch = dmd2.maker.make(torch.arange(4), step_generator(0, 0))
    w = Guidance.fixed(dmd2.config, 4)
    generator = weights(dmd2.generator.module)
    base = dmd2.guided.base(batch.x0, torch.full((4,), 0.5), batch, w)
    dmd2.step(0)
    after = weights(dmd2.generator.module)
    dmd2.update_fake(3, step_generator(0, 1))
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
    dmd2.replay.append(Generated(batch.x0, batch, w, exit_step=2))
    dmd2.update_fake(3, step_generator(0, 1))
    assert dmd2.scores.exits is not None
    moved = dmd2.scores.exits.weight.detach().abs().amax(1) > 0
    assert moved.tolist() == [False, False, True, False]


def test_noised_real_clips_are_what_the_generator_sees_in_place_of_its_own_steps(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, generator_input="noised_real")
    batch, w = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), Guidance.fixed(dmd2.config, 4)
    state = dmd2.chain.state(batch, w, 2, step_generator(0, 1))
    sigma = dmd2.chain.sigmas[2].expand(4)
    noised = interpolate(batch.x0, randn_like(batch.x0, step_generator(0, 1)), sigma)
    torch.testing.assert_close((state.x_t, state.sigma), (noised, sigma))


def test_the_fake_score_learns_from_all_kept_batches(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dmd2 = build(folders, tmp_path)
    w, seen = Guidance.fixed(dmd2.config, 4), []
    batches = [dmd2.maker.make(torch.arange(4), step_generator(0, step)) for step in range(3)]
    dmd2.replay.extend(Generated(batch.x0, batch, w, exit_step=3) for batch in batches)
    fake = GuidedScores.fake

    def spy(scores: GuidedScores, network: Any, x_t: Tensor, sigma: Tensor, batch: Batch, w: Guidance) -> Tensor:
        seen.append(batch)
        return fake(scores, network, x_t, sigma, batch, w)

    monkeypatch.setattr(GuidedScores, "fake", spy)
    dmd2.update_fake(20, step_generator(0, 1))
    assert {id(batch) for batch in seen} == {id(batch) for batch in batches}


def test_as_many_generator_batches_are_kept_as_the_config_says(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, replay_batches=2, num_steps=3, fake_warmup_updates=0)
    kept = []
    for step in range(3):
        dmd2.step(step)
        kept.append(len(dmd2.replay))
    assert kept == [1, 2, 2]


def test_equal_strengths_leave_the_generator_where_it_is(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, a_weak=1.0)
    dmd2.step(0)  # the adapter is no longer zero
    batch = dmd2.maker.make(torch.arange(4), step_generator(0, 0))
    w = Guidance.fixed(dmd2.config, 4)
    gradient = dmd2.distribution_matching_gradient(batch.x0, batch, w, step_generator(0, 0))
    assert float(gradient.abs().max()) == 0
    assert not gradient.requires_grad, "a graph through the fake score would take as much memory as training it"


def test_a_run_that_was_killed_ends_as_one_that_was_not(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_steps": 6, "checkpoint_every_steps": 2, "validate_every_steps": 2, "replay_batches": 3}
    config = Dmd2Config.model_validate(SHORT | options)
    spec = Dmd2Spec(config, CONFIG, folders / "data", folders / "teacher", folders / "student")
    launch(spec, config, tmp_path / "straight", NullLog(), seed=0)
    whole = Dmd2.step

    def dies(dmd2: Dmd2, step: int) -> dict[str, Tensor | float]:
        if step == 5:
            raise ZeroDivisionError
        return whole(dmd2, step)

    monkeypatch.setattr(Dmd2, "step", dies)
    with pytest.raises(ZeroDivisionError):
        launch(spec, config, tmp_path / "killed", NullLog(), seed=0)
    monkeypatch.setattr(Dmd2, "step", whole)
    assert launch(spec, config, tmp_path / "killed", NullLog(), seed=0).resumed_from_step == 4
    weights_file = "export/transformer/diffusion_pytorch_model.safetensors"
    for name in (weights_file, "metrics.jsonl", "export/watch.json"):
        straight, killed = ((tmp_path / run / name).read_bytes() for run in ("straight", "killed"))
        assert straight == killed, name


def test_batches_kept_by_other_workers_are_not_replayed(folders: Path, tmp_path: Path) -> None:
    """A run that goes on with fewer workers: a worker's old batches have fewer clips than its new ones."""
    alone = {**PLACEMENT, "clips_per_pass": 2}
    before, after = (build(folders, tmp_path, batch_size=size, placement=alone) for size in (2, 4))
    for step in range(before.first_step, 1):
        before.step(step)
    after.load_state_dict({**before.state_dict(), "ema": after.ema.state_dict()})
    assert len(before.replay) == 2, "the warm-up's and the step's"
    assert len(after.replay) == 0
    after.step(1)
    assert len(after.replay[0].x0) == 4


def test_validation_takes_no_more_clips_at_once_than_training(folders: Path, tmp_path: Path) -> None:
    watched = {**SHORT["collapse"], "num_clips": 3}
    sizes: set[int] = set()

    def figures(batch_size: int) -> dict[str, float]:
        dmd2 = build(folders, tmp_path, batch_size=batch_size, collapse=watched, real_guidance_scale=2.0)
        for network in (dmd2.generator.module, dmd2.scores.network):
            network.register_forward_pre_hook(
                lambda _, args, kwargs: sizes.add(len(kwargs["timestep"])), with_kwargs=True
            )
        return dmd2.validate()

    whole = figures(batch_size=4)
    assert sizes == {3}
    sizes.clear()
    assert figures(batch_size=2) == pytest.approx(whole, rel=1e-3), "the noise is the same"
    assert sizes == {2, 1}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"fake_score": "full"}, "a_weak = 0.5: a full fake score has no adapter"),
        ({"regression_weight": 1.0}, "generator_input = noised_real"),
        (
            {"optimizer": {"kind": "adamw"}, "fake_optimizer": {"kind": "muon"}, "placement": {"engine": "deepspeed"}},
            "fake_optimizer.kind = muon: ZeRO stage",
        ),
        ({"min_score_time": 0.4, "max_score_time": 0.4}, "min_score_time = 0.4 is not below max_score_time = 0.4"),
        ({"student_guidance_range": (3.0, 1.0)}, "its ends are swapped"),
        ({"student_guidance_range": (2.0, 3.0)}, r"to contain student_guidance_scale = 1.2.*use \(1.2, 3.0\)"),
        (
            {
                "adversarial_weight": 1.0,
                "optimizer": {"kind": "adamw"},
                "placement": {"engine": "deepspeed", "zero_stage": 3},
            },
            "placement.zero_stage <= 2",
        ),
        ({"adversarial_weight": 0.1, "discriminator_weight": 0}, "adversarial_weight = 0.1: with discriminator_weight"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Dmd2Config.model_validate(options)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_fake_update_that_was_left_out_shows(folders: Path, tmp_path: Path, broken: float) -> None:
    """The generator's own norm is fine, and the fake score would stay what it was without anyone knowing."""
    dmd2, factors = build(folders, tmp_path), iter((broken, 1.0))  # of the first of two updates only
    (some, *_) = (p for p in dmd2.fake.module.parameters() if p.requires_grad)
    some.register_hook(lambda gradient: gradient * next(factors))
    values = dmd2.step(0)
    assert math.isfinite(values["grad_norm"])
    assert not math.isfinite(values["fake_grad_norm"])


def test_an_adapter_on_the_teacher_is_not_given_a_w_that_it_cannot_see() -> None:
    adapter = {"start": "teacher", "generator_lora_rank": 4, "student_guidance_range": (1.0, 3.0)}
    with pytest.raises(ValueError, match=r"student_guidance_range = .* never learns w.*use start = cfg_distilled"):
        Dmd2Config.model_validate(SHORT | adapter)


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


def test_the_fake_score_warms_up_on_new_clips_as_often_as_later(folders: Path, tmp_path: Path) -> None:
    """Trained on one batch alone, it would know those clips, and not what the student makes."""
    dmd2 = build(folders, tmp_path, fake_warmup_updates=5, replay_batches=9)
    for step in range(dmd2.first_step, 1):
        dmd2.step(step)
    first, *others = list(dmd2.replay)
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
    assert dmd2.keep(made)
    dmd2.context = replace(dmd2.context, world_size=2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda broken: broken.add_(1))  # of the other worker's clips
    assert not dmd2.keep(made)
    assert len(dmd2.replay) == 1


@pytest.mark.parametrize(("keep", "exported"), [("best", 1), ("last", 2)])
def test_the_average_is_validated_and_the_best_or_the_last_one_exported(
    folders: Path, tmp_path: Path, keep: str, exported: int
) -> None:
    fast = {"kind": "adamw", "learning_rate": 0.02, "warmup_steps": 0}
    dmd2, averages = build(folders, tmp_path, num_steps=3, optimizer=fast, keep=keep), []
    for step, frechet in enumerate((2.0, 1.0, 3.0)):
        dmd2.step(step)
        dmd2.judge(step + 1, {"validation_frechet": frechet})
        averages.append(dmd2.ema.state_dict()["shadow"]["proj_out.weight"].clone())
    validated = dmd2.validate()
    assert validated != dmd2.validation.figures(num_steps=3), "of the weights as they are"
    with dmd2.ema.applied():
        assert validated == dmd2.validation.figures(num_steps=3)
    assert bool(dmd2.watch.best) == (keep == "best"), "no copy that nothing reads"
    dmd2.export(tmp_path / "out")
    assert torch.equal(load_transformer(tmp_path / "out" / "transformer").proj_out.weight, averages[exported])
    assert json.loads((tmp_path / "out" / "watch.json").read_text())["exported_step"] == exported + 1


@pytest.mark.parametrize("collapsed", [True, False])
def test_what_the_watch_saw_at_the_end_reaches_the_stages_figures(
    folders: Path, tmp_path: Path, collapsed: bool
) -> None:
    """A promotion asks for nothing else."""
    never = {f"max_{name}": 1e9 for name in ("variance_ratio", "mean_drift", "frechet_ratio")}
    never |= {
        "min_detail_ratio": 0,
        "max_detail_ratio": 1e9,
        "min_motion_ratio": 0,
        "min_diversity_ratio": 0,
        "min_mode_coverage": 0,
        "max_saturation": 1,
    }
    watched = SHORT["collapse"] | never | {"patience": 1, "min_variance_ratio": 1e9 if collapsed else 0}
    config = Dmd2Config.model_validate(SHORT | {"collapse": watched})
    spec = Dmd2Spec(config, CONFIG, folders / "data", folders / "teacher", folders / "student")
    log, out = RecordingLog(), tmp_path / "out"
    out.mkdir()
    train(spec, config, folders / "data", out, log, 0, tmp_path / "run")
    assert log.summaries["collapsed"] == json.loads((out / "training.json").read_text())["collapsed"] == collapsed
