"""The networks of DMD2: where the student starts, and at which guidance scale each score is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from magic141.diffusion.guidance import guided_velocity
from magic141.models.transformer import build_transformer, load_transformer, velocity
from magic141.training.context import TrainContext
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.networks import Guidance
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.random_numbers import step_generator
from tests.evaluation.artifacts import CHANNELS
from tests.models.tiny import CONFIG
from tests.training.dmd2.tiny import OPTIONS, SHORT, build, weights


def test_a_t2v_teacher_makes_a_t2v_student(folders: Path, tmp_path: Path) -> None:
    info = json.loads((folders / "data" / "dataset.json").read_text())
    teacher = build_transformer(CONFIG, CHANNELS, info["text_width"], info["pooled_width"])
    torch.nn.init.normal_(teacher.proj_out.weight, std=0.05)
    teacher.save_pretrained(tmp_path / "t2v")
    config = Dmd2Config.model_validate(SHORT | {"start": "teacher"})
    spec = Dmd2Spec(config, CONFIG, folders / "data", tmp_path / "t2v", tmp_path / "no student")
    dmd2 = spec.build(TrainContext(0, 1, torch.device("cpu"), tmp_path, 0, config.placement))
    before = weights(dmd2.generator.module)
    dmd2.step(0)
    assert any(not torch.equal(before[name], value) for name, value in weights(dmd2.generator.module).items())
    assert dmd2.validate()["validation_frechet_ratio"] > 0
    dmd2.export(tmp_path / "out")
    assert load_transformer(tmp_path / "out" / "transformer").config.in_channels == CHANNELS


@pytest.mark.parametrize("option", ["the fake score knows the exit", "adversarial", "LoRA generator"])
def test_in_bf16_the_frozen_base_of_the_scores_is_in_bf16_and_all_that_is_trained_is_not(
    folders: Path, tmp_path: Path, option: str
) -> None:
    dmd2 = build(folders, tmp_path, precision="bf16", **OPTIONS[option])
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in dmd2.scores.parameters()}
    assert kinds == {(False, torch.bfloat16), (True, torch.float32)}
    assert dmd2.step(0)["loss"] > 0
    assert dmd2.validate()["validation_frechet_ratio"] > 0


@pytest.mark.parametrize(
    ("options", "is_shared"),
    [
        ({"real_score": "cfg_distilled"}, True),
        ({"start": "teacher", "real_score": "teacher"}, True),
        ({"real_score": "teacher"}, False),
        ({"start": "teacher", "real_score": "cfg_distilled"}, False),
        ({"real_score": "cfg_distilled", "generator_lora_rank": 0}, False),
        ({"real_score": "cfg_distilled", "fake_score": "full", "a_weak": 0.0}, False),
    ],
    ids=str,
)
def test_branches_of_one_network_have_it_in_memory_once_and_train_the_same(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], is_shared: bool
) -> None:
    one = build(folders, tmp_path, **{"generator_lora_rank": 4, **options})
    blocks = "transformer_blocks.0.attn.to_q"
    of_generator, of_scores = (
        {p.data_ptr() for name, p in network.named_parameters() if blocks in name and ".lora_" not in name}
        for network in (one.generator.module, one.scores)
    )
    assert (of_generator <= of_scores) == is_shared
    assert one.config.has_one_base == is_shared
    monkeypatch.setattr("magic141.training.dmd2.networks.share_frozen", lambda network, owner: None)
    two = build(folders, tmp_path, **{"generator_lora_rank": 4, **options})
    for step in range(2):  # where weights lie in memory decides last bits
        ours, theirs = ({name: float(value) for name, value in it.step(step).items()} for it in (one, two))
        assert ours == pytest.approx(theirs, rel=0.02)


def test_guidance_in_the_real_score_is_the_guided_teacher(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, real_guidance_scale=2.5, a_weak=0.0)
    batch, sigma = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), torch.full((4,), 0.6)
    teacher = load_transformer(folders / "teacher").eval()
    with torch.no_grad():
        conditional = velocity(teacher, batch.x0, sigma, batch.cond, batch.prefix)
        unconditional = velocity(teacher, batch.x0, sigma, batch.uncond, batch.prefix)
    for scale in (1.0, 2.5):
        w = torch.full((4,), scale)
        expected = guided_velocity(unconditional, conditional, w)
        torch.testing.assert_close(dmd2.guided.real(batch.x0, sigma, batch, Guidance(w, w)), expected)


def test_w_is_drawn_from_its_range_for_student_and_real_score_alike() -> None:
    config = Dmd2Config(student_guidance_range=(1.0, 3.0))
    w = Guidance.draw(config, 1000, torch.Generator().manual_seed(0))
    assert torch.equal(w.student, w.real)
    assert 1.0 <= float(w.student.min()) < 1.1
    assert 2.9 < float(w.student.max()) <= 3.0
    again = Guidance.draw(config, 1000, torch.Generator().manual_seed(0))
    assert torch.equal(again.student, w.student), "of a step that is repeated after a restart"


def test_whether_a_teacher_is_guided_does_not_depend_on_the_w_that_was_drawn(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its weights are split, all workers have to call it as often."""
    calls: list[Any] = []
    dmd2 = build(folders, tmp_path, student_guidance_range=(1.0, 3.0))

    def called(hidden_states: torch.Tensor, **inputs: Any) -> Any:
        calls.append(inputs)
        return (hidden_states[:, : batch.x0.shape[1]],)

    monkeypatch.setattr(dmd2.scores, "real", lambda: called)
    batch = dmd2.maker.make(torch.arange(2), step_generator(0, 0, 0))
    for w in (torch.ones(2), torch.tensor([1.0, 2.0])):
        calls.clear()
        dmd2.guided.real(batch.x0, torch.full((2,), 0.5), batch, Guidance(w, w))
        assert len(calls) == 2


@pytest.mark.parametrize("start", ["teacher", "cfg_distilled"])
def test_the_generator_starts_from_the_model_that_the_config_names(folders: Path, tmp_path: Path, start: str) -> None:
    student = load_transformer(folders / "student")
    torch.nn.init.normal_(student.proj_out.weight, std=0.1)  # else both have the same weights
    student.save_pretrained(tmp_path / "student")
    config = Dmd2Config.model_validate(SHORT | {"start": start})
    spec = Dmd2Spec(config, CONFIG, folders / "data", folders / "teacher", tmp_path / "student")
    dmd2 = spec.build(TrainContext(0, 1, torch.device("cpu"), tmp_path, 0, config.placement))
    expected = load_transformer(folders / "teacher" if start == "teacher" else tmp_path / "student")
    assert torch.equal(dmd2.generator.module.get_parameter("proj_out.weight"), expected.proj_out.weight)


def test_a_student_of_a_range_is_validated_against_the_score_at_its_own_w() -> None:
    ranged = Dmd2Config(student_guidance_range=(1.0, 3.0), student_guidance_scale=2.0, real_guidance_scale=1.5)
    fixed = Dmd2Config(student_guidance_scale=2.0, real_guidance_scale=1.5)
    for config, real in ((ranged, 2.0), (fixed, 1.5)):
        w = Guidance.fixed(config, 2)
        assert (w.student.tolist(), w.real.tolist()) == ([2.0] * 2, [real] * 2)


def test_a_distilled_model_judges_at_the_w_of_the_real_score(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, real_score="cfg_distilled", real_guidance_scale=3.0)
    network = dmd2.scores.network
    torch.nn.init.normal_(network.get_parameter("time_text_embed.guidance_embedder.linear_2.weight"))  # zero hides w
    batch, sigma = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), torch.full((4,), 0.6)
    w, guided = Guidance(torch.full((4,), 1.2), torch.full((4,), 3.0)), dmd2.guided
    with torch.no_grad():
        expected = velocity(network, batch.x0, sigma, batch.cond, batch.prefix, w.real)
        found = [score(batch.x0, sigma, batch, w) for score in (guided.real, guided.base)]
        found.append(guided.fake(dmd2.scores, batch.x0, sigma, batch, w))
    for u in found:
        torch.testing.assert_close(u, expected)
