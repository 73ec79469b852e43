"""Training on clips of several sizes: every update is of one, on all workers alike."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from magic141.data.dataset import ClipDataset
from magic141.stage_log import NullLog
from magic141.training.batch_sampler import BatchSampler
from magic141.training.cfg_distillation import CfgDistillationSpec
from magic141.training.config import CfgDistillationConfig
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.launch import TrainResult, launch
from tests.evaluation.artifacts import add_upright_clips
from tests.models.tiny import CONFIG
from tests.training.test_sequence_parallel import ONE, SPLIT, assert_trains_as
from tests.training.test_sharded import DDP, DMD2, SHARDED, SHORT

BATCH_SIZE = SHORT["batch_size"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forks")]


@pytest.fixture(scope="module")
def data(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("several") / "data"
    shutil.copytree(folders / "data", copy)
    return add_upright_clips(copy, 40)


def widths(data: Path, steps: range) -> list[int]:
    """Of the latents of these steps' clips."""
    train = ClipDataset.open(data, "train")
    sampler = BatchSampler(list(train.by_size.values()), BATCH_SIZE, seed=0)
    return [train.latents[sampler.indices(step)].shape[-1] for step in steps]


def test_workers_that_split_tokens_train_as_those_of_whole_clips(folders: Path, data: Path, tmp_path: Path) -> None:
    def run(name: str, placement: dict[str, Any]) -> TrainResult:
        config = CfgDistillationConfig.model_validate(SHORT | {"placement": placement})
        spec = CfgDistillationSpec(config, CONFIG, data, folders / "teacher")
        return launch(spec, config, tmp_path / name, NullLog(), seed=0)

    assert set(widths(data, range(SHORT["num_steps"]))) == {2, 4}, "or the test shows nothing"
    assert_trains_as(run("split", DDP | SPLIT | {"num_workers": 4}), run("whole", DDP))


@pytest.mark.parametrize(
    ("placement", "options"),
    [(SHARDED | SPLIT | {"zero_stage": 1}, {"own_frames_fraction": 0.5}), (DDP | SPLIT, {"adversarial_weight": 0.1})],
    ids=["ZeRO 1", "DDP, adversarial"],
)
def test_step_distillation_keeps_clips_of_both_sizes_for_the_fake_score(
    folders: Path, data: Path, tmp_path: Path, placement: dict[str, Any], options: dict[str, Any]
) -> None:
    def run(name: str, placement: dict[str, Any]) -> TrainResult:
        config = Dmd2Config.model_validate(DMD2 | options | {"replay_batches": 3, "placement": placement})
        spec = Dmd2Spec(config, CONFIG, data, folders / "teacher", folders / "student")
        return launch(spec, config, tmp_path / name, NullLog(), seed=0)

    assert_trains_as(run("split", placement), run("whole", ONE))
