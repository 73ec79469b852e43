"""What a validation shows and judges, and which weights the stage returns."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from magic141.data.dataset import ClipDataset
from magic141.data.videos.sheets import with_row_names
from magic141.errors import UserError
from magic141.models.transformer import load_transformer
from magic141.training.context import TrainContext
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.networks import GuidedScores
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.dmd2.validation import ROWS, Dmd2Validation
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


MANY_STEPS: dict[str, Any] = {  # a student that is the model that it is compared with
    "real_score": "cfg_distilled",
    "real_guidance_scale": 1.2,
    "num_inference_steps": 3,
    "sampler": "euler",
    "collapse": SHORT["collapse"] | {"reference_steps": 3, "num_shown": 0},
}


def assert_as_good_as_the_reference(figures: dict[str, float]) -> None:
    expected = {name: float(name.endswith(("ratio", "coverage"))) for name in figures if name != "validation_frechet"}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_a_student_that_is_the_many_step_model_is_judged_as_good_and_one_that_is_used_otherwise_is_not(
    folders: Path, tmp_path: Path
) -> None:
    watched = MANY_STEPS["collapse"]

    def figures(**options: Any) -> dict[str, float]:
        return build(folders, tmp_path / str(len(list(tmp_path.iterdir()))), **MANY_STEPS | options).validate()

    alike = figures()
    frechet = alike["validation_frechet"]
    assert_as_good_as_the_reference(alike)
    others = [figures(**change) for change in ({"sampler": "renoise"}, {"num_inference_steps": 2})]
    for other in (*others, figures(collapse=watched | {"reference_steps": 2})):
        assert other["validation_variance_ratio"] != pytest.approx(1, rel=1e-4)
    for other in others:
        assert other["validation_frechet_ratio"] == pytest.approx(other["validation_frechet"] / frechet)
    for change in ({"shift": 1.0}, {"collapse": watched | {"num_seeds": 1}}):
        assert figures(**change)["validation_frechet"] != pytest.approx(frechet, rel=1e-4), "of all seeds' clips"


def test_validation_clips_are_those_of_their_split_of_which_only_the_first_frame_is_known(
    folders: Path, tmp_path: Path
) -> None:
    dmd2, seen = build(folders, tmp_path, continued_fraction=1.0), dict[str, Tensor]()
    dmd2.generator.module.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    dmd2.validate()
    dataset = ClipDataset.open(folders / "data", "validation")
    captions = {tuple(dataset.pooled[row].tolist()) for row in range(len(dataset))}
    assert {tuple(row.tolist()) for row in seen["pooled_projections"]} <= captions
    is_known = seen["hidden_states"][:, -1, :, 0, 0]
    assert is_known.sum(1).tolist() == [1, 1]


def test_clips_that_are_not_finite_are_as_far_from_real_ones_as_can_be(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path)
    dmd2.generator.module.state_dict()["proj_out.bias"].fill_(torch.nan)
    assert dmd2.validation.figures(num_steps=0)["validation_frechet"] == float("inf")


def test_a_many_step_model_whose_clips_are_not_finite_cannot_judge(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path)
    dmd2.scores.network.proj_out.bias.data.fill_(torch.nan)
    with pytest.raises(UserError, match=r"real_score = teacher: its clips in .* steps have values that are not finite"):
        dmd2.validate()


def test_the_picture_shows_of_each_clip_the_student_the_real_score_and_below_it_the_fake_score(
    folders: Path, tmp_path: Path
) -> None:
    dmd2 = build(folders, tmp_path, a_weak=0.0, collapse=SHORT["collapse"] | {"num_shown": 2})

    def rows() -> NDArray[np.uint8]:
        dmd2.validate()
        sheet = np.asarray(Image.open(tmp_path / "images" / "student_real_fake-000000.png"))
        return sheet.reshape(6, -1, *sheet.shape[1:])

    before = rows()
    for name, parameter in dmd2.scores.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    changed = [not np.array_equal(row, other) for row, other in zip(before, rows(), strict=True)]
    assert changed == [False, False, True] * 2


def test_workers_judge_their_clips_together_and_sample_the_many_step_model_all_or_none(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of a network that is split over workers waits for all of them."""
    workers = [build(folders, tmp_path, **MANY_STEPS) for _ in range(2)]
    meeting, parts = threading.Barrier(2, timeout=20), dict[int, Tensor]()

    def summed(values: Tensor, context: TrainContext) -> Tensor:
        parts[context.rank] = values
        meeting.wait()
        total = parts[0] + parts[1]
        meeting.wait()
        return total

    def validate(rank: int) -> dict[str, float]:
        dmd2 = workers[rank]
        context = replace(dmd2.context, rank=rank, world_size=2)
        return Dmd2Validation(dmd2.maker, dmd2.guided, dmd2.chain, folders / "data", context).figures(num_steps=0)

    for name in ("sum_over_workers", "sum_over_shares"):
        monkeypatch.setattr(f"magic141.training.dmd2.validation.{name}", summed)
    with ThreadPoolExecutor(2) as pool:
        figures, same = pool.map(validate, range(2))
        assert figures == same
        assert_as_good_as_the_reference(figures)
        passes = Counter[int]()
        for rank, dmd2 in enumerate(workers):
            dmd2.scores.network.register_forward_hook(lambda *_, rank=rank: passes.update([rank]))
        assert list(pool.map(validate, range(2))) == [figures] * 2
        assert not passes
        shutil.rmtree(tmp_path / "many_steps-1-of-2")
        assert list(pool.map(validate, range(2))) == [figures] * 2
        assert passes[0] == passes[1] > 0
        for dmd2 in workers:
            dmd2.generator.module.state_dict()["proj_out.bias"].fill_(1.0)
        worse, same = pool.map(validate, range(2))
        assert worse == same != figures


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
    state = {**dmd2.state_dict(), "watch": {**dmd2.watch.state_dict(), "best": dmd2.ema.state_dict()}}
    with monkeypatch.context() as patch:
        patch.setattr(dmd2.generator, "sharded", sharded)
        dmd2.load_state_dict(state)
    assert bool(dmd2.watch.best) == sharded, "nor takes it from a checkpoint"
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
