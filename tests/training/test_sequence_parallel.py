"""Workers that split the tokens of their clips train as those do that take whole clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from magic141.stage_log import NullLog
from magic141.training.cfg_distillation import CfgDistillationSpec
from magic141.training.checkpoint import CheckpointInfo
from magic141.training.config import CfgDistillationConfig, PlacementConfig
from magic141.training.context import TrainContext
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.launch import TrainResult, launch
from tests.models.tiny import CONFIG
from tests.training.test_sharded import BF16, DDP, DMD2, FULL, OWN_FRAMES, SHARDED, SHORT, assert_same, losses

ONE = DDP | {"num_workers": 1}
SPLIT = {"sequence_parallel_size": 2}
OF_ALL_W = {"real_score": "cfg_distilled", "student_guidance_range": (1.0, 3.0)}


def test_workers_that_split_tokens_take_the_same_share(tmp_path: Path) -> None:
    placement = PlacementConfig(num_workers=6, sequence_parallel_size=2)
    workers = [TrainContext(rank, 6, torch.device("cpu"), tmp_path, 0, placement) for rank in range(6)]
    assert [worker.share for worker in workers] == [0, 0, 1, 1, 2, 2]
    assert [worker.leads_share for worker in workers] == [True, False] * 3
    assert {worker.num_shares for worker in workers} == {3}


@pytest.mark.parametrize(
    ("then", "now", "writers"),
    [
        ((4, 1), (4, 1), [0, 1, 2, 3]),
        ((4, 2), (4, 2), [0, 1, 2, 3]),
        ((4, 1), (4, 2), [0, 0, 1, 1]),
        ((4, 2), (4, 1), [0, 2, 0, 2]),
        ((2, 1), (4, 1), [0, 1, 0, 1]),
        ((4, 2), (2, 1), [0, 2]),
    ],
)
def test_a_share_goes_on_from_the_state_of_one_however_its_tokens_were_split(
    tmp_path: Path, then: tuple[int, int], now: tuple[int, int], writers: list[int]
) -> None:
    """(workers, of which so many split tokens): which worker's state each of today's workers takes."""
    info = CheckpointInfo(1, "ddp", *then, 0, 0.0, 0.0, 0.0, 0)
    placement = PlacementConfig(num_workers=now[0], sequence_parallel_size=now[1])
    contexts = [TrainContext(rank, now[0], torch.device("cpu"), tmp_path, 0, placement) for rank in range(now[0])]
    assert [info.writer(context) for context in contexts] == writers


def assert_trains_as(split: TrainResult, whole: TrainResult) -> None:
    """The same weights in the end, and the same curves, of validations too."""
    assert_same(split, whole)
    ours, theirs = ([json.loads(line) for line in one.metrics_file.read_text().splitlines()] for one in (split, whole))
    assert any(name.startswith("validation_") for row in ours for name in row)
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, rel=5e-3, abs=1e-5)


def distil_guidance(folders: Path, folder: Path, placement: dict[str, Any], lora_rank: int = 0) -> TrainResult:
    config = CfgDistillationConfig.model_validate(SHORT | {"placement": placement, "lora_rank": lora_rank})
    spec = CfgDistillationSpec(config, CONFIG, folders / "data", folders / "teacher")
    return launch(spec, config, folder, NullLog(), seed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_guidance_distillation_in_two_shares_also_after_a_crash_by_others(folders: Path, tmp_path: Path) -> None:
    whole = distil_guidance(folders, tmp_path / "whole", DDP)
    split = distil_guidance(folders, tmp_path / "split", DDP | SPLIT | {"num_workers": 4})
    assert_trains_as(split, whole)
    for made_later in (
        "result.json",
        "export",
        "checkpoints/step-000003",
    ):  # as if it had ended after two of three steps
        (tmp_path / "split" / made_later).rename(tmp_path / Path(made_later).name)
    resumed = distil_guidance(folders, tmp_path / "split", DDP)
    assert resumed.resumed_from_step == 2
    assert_same(resumed, whole)


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_step_distillation_in_bf16_is_nearly_that_of_whole_clips(folders: Path, tmp_path: Path) -> None:
    """As the 13B is trained."""

    def run(name: str, placement: dict[str, Any]) -> TrainResult:
        config = Dmd2Config.model_validate(DMD2 | BF16 | {"real_guidance_scale": 6.0, "placement": placement})
        spec = Dmd2Spec(config, CONFIG, folders / "data", folders / "teacher", folders / "student")
        return launch(spec, config, tmp_path / name, NullLog(), seed=0)

    assert losses(run("split", SHARDED | SPLIT)) == pytest.approx(losses(run("whole", ONE)), rel=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_guidance_distillation_of_a_branch_with_split_weights(folders: Path, tmp_path: Path) -> None:
    split = distil_guidance(folders, tmp_path / "split", SHARDED | SPLIT, lora_rank=4)
    assert_trains_as(split, distil_guidance(folders, tmp_path / "whole", ONE, lora_rank=4))


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(
    ("placement", "options"),
    [
        (SHARDED | {"clips_per_pass": 1}, OWN_FRAMES),
        (SHARDED | {"zero_stage": 1}, FULL),
        (SHARDED | {"zero_stage": 2}, {"generator_lora_rank": 4, "real_score": "cfg_distilled"}),
        (DDP, {"adversarial_weight": 0.1, "adversarial_input": "clean", "generator_lora_rank": 4, **OF_ALL_W}),
    ],
    ids=[
        "ZeRO 3",
        "ZeRO 1, full fake score, adversarial",
        "ZeRO 2, branches of one base",
        "DDP, adversarial, LoRA generator, any w",
    ],
)
def test_step_distillation(folders: Path, tmp_path: Path, placement: dict[str, Any], options: dict[str, Any]) -> None:
    def run(name: str, placement: dict[str, Any]) -> TrainResult:
        config = Dmd2Config.model_validate(DMD2 | options | {"placement": placement})
        spec = Dmd2Spec(config, CONFIG, folders / "data", folders / "teacher", folders / "student")
        return launch(spec, config, tmp_path / name, NullLog(), seed=0)

    assert_trains_as(run("split", placement | SPLIT), run("whole", ONE))
