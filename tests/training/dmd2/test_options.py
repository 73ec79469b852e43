"""The whole DMD2 objective on a tiny corpus, with each of its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.diffusion.flow import interpolate
from magic141.diffusion.samplers import randn_like
from magic141.models.transformer import load_transformer
from magic141.stage_log import NullLog
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.dmd2 import Dmd2
from magic141.training.dmd2.networks import Guidance
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.launch import launch
from magic141.training.random_numbers import step_generator
from tests.models.tiny import CONFIG
from tests.training.dmd2.tiny import OPTIONS, SHORT, build, weights


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


def test_noised_real_clips_are_what_the_generator_sees_in_place_of_its_own_steps(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, generator_input="noised_real")
    batch, w = dmd2.maker.make(torch.arange(4), step_generator(0, 0)), Guidance.fixed(dmd2.config, 4)
    state = dmd2.chain.state(batch, w, 2, step_generator(0, 1))
    sigma = dmd2.chain.sigmas[2].expand(4)
    noised = interpolate(batch.x0, randn_like(batch.x0, step_generator(0, 1)), sigma)
    torch.testing.assert_close((state.x_t, state.sigma), (noised, sigma))


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
