"""What a validation shows and judges, and which weights the stage returns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from magic141.errors import UserError
from magic141.models.transformer import load_transformer
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.networks import GuidedScores
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.dmd2.validation import ROWS, with_row_names
from magic141.training.train import train
from tests.evaluation.artifacts import RecordingLog
from tests.models.tiny import CONFIG
from tests.training.dmd2.tiny import SHORT, build


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


def test_the_many_step_models_clips_are_sampled_once_for_all_attempts(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build(folders, tmp_path).validate()
    monkeypatch.setattr(GuidedScores, "base", Mock(side_effect=ZeroDivisionError))
    assert build(folders, tmp_path).validate() == expected
    with pytest.raises(ZeroDivisionError):
        build(folders, tmp_path / "other").validate()


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
    assert not torch.equal(averages[0], averages[1]), "every step counts in the average"
    validated = dmd2.validate()
    assert validated != dmd2.validation.figures(num_steps=3), "of the weights as they are"
    with dmd2.ema.applied():
        assert validated == dmd2.validation.figures(num_steps=3)
    assert bool(dmd2.watch.best) == (keep == "best"), "no copy that nothing reads"
    dmd2.export(tmp_path / "out")
    assert torch.equal(load_transformer(tmp_path / "out" / "transformer").proj_out.weight, averages[exported])
    assert json.loads((tmp_path / "out" / "watch.json").read_text())["exported_step"] == exported + 1


@pytest.mark.parametrize("sharded", [True, False])
def test_another_worker_keeps_its_average_only_if_it_has_a_part_of_the_weights(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    dmd2 = build(folders, tmp_path)
    dmd2.context = replace(dmd2.context, rank=1, world_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(dmd2.generator, "sharded", sharded)
        dmd2.judge(1, {"validation_frechet": 1.0})
    assert bool(dmd2.watch.best) == sharded
    dmd2.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_watch_knows_the_beginning_and_ends_a_run_that_has_collapsed(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, collapse=SHORT["collapse"] | {"stop": True, "patience": 1})
    assert dmd2.begin() == dmd2.watch.start == dmd2.validate()
    assert dmd2.watch.start
    dmd2.watch.start = {}
    dmd2.judge(2, {"validation_frechet": 1.0, "validation_saturation": 0.5})
    with pytest.raises(UserError, match="50% of the values saturated"):
        dmd2.require_sound()


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
