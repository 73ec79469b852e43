"""The engine of the 13B configuration on the real networks: ZeRO-3, recomputed activations, a frozen base with LoRA."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from magic141.models.transformer import add_guidance_embedding, build_transformer, load_transformer
from magic141.stage_log import NullLog
from magic141.training.cfg_distillation import CfgDistillation, CfgDistillationSpec
from magic141.training.config import CfgDistillationConfig
from magic141.training.context import TrainContext
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.launch import TrainResult, launch
from tests.evaluation.artifacts import CHANNELS, make_data
from tests.models.tiny import CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forks")]

DDP: dict[str, Any] = {"engine": "ddp", "num_workers": 2, "log_every_steps": 1}
SHARDED = DDP | {"engine": "deepspeed", "zero_stage": 3, "gradient_checkpointing": True}
ADAMW = {"kind": "adamw", "learning_rate": 1e-4, "warmup_steps": 0}
SHORT: dict[str, Any] = {
    "num_steps": 3,
    "batch_size": 4,
    "optimizer": ADAMW,
    "checkpoint_every_steps": 2,
    "validate_every_steps": 3,
}
BF16: dict[str, Any] = {"precision": "bf16", "num_steps": 2}  # slow on CPUs that have no instructions for it
DMD2: dict[str, Any] = SHORT | {
    "fake_optimizer": ADAMW,
    "fake_updates_per_step": 2,
    "fake_warmup_updates": 1,
    "lora_rank": 4,
    "exit_embedding": True,
    "collapse": {"num_clips": 4, "reference_steps": 2, "num_shown": 1, "stop": False},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    info = json.loads((make_data(folder / "data") / "dataset.json").read_text())
    torch.manual_seed(0)
    teacher = build_transformer(CONFIG, CHANNELS, info["text_width"], info["pooled_width"], True, False)
    torch.nn.init.normal_(teacher.proj_out.weight, std=0.2)  # zero at first, which would hide mistakes
    teacher.save_pretrained(folder / "teacher")
    add_guidance_embedding(teacher).save_pretrained(folder / "student")
    return folder


def losses(result: TrainResult) -> list[float]:
    rows = [json.loads(line) for line in result.metrics_file.read_text().splitlines()]
    return [row["loss"] for row in rows if row["step"] > 0]  # step 0 is what a validation saw before the first update


def assert_same(sharded: TrainResult, whole: TrainResult) -> None:
    assert losses(sharded) == pytest.approx(losses(whole), rel=1e-3)
    left, right = (load_transformer(result.export / "transformer").state_dict() for result in (sharded, whole))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=2e-4)


def assert_alike(sharded: TrainResult, whole: TrainResult, start: Path) -> None:
    """In bf16, whose gradients are also summed in bf16 where they are split: nearly the same updates."""
    assert losses(sharded) == pytest.approx(losses(whole), rel=0.02)
    before = load_transformer(start).state_dict()
    left, right = (
        torch.cat([(value - before[name]).flatten() for name, value in trained.items() if name in before])
        for trained in (load_transformer(result.export / "transformer").state_dict() for result in (sharded, whole))
    )
    assert float(torch.cosine_similarity(left, right, dim=0)) > 0.9
    assert float(left.norm()) == pytest.approx(float(right.norm()), rel=0.05)


@dataclass(frozen=True)
class Watched(CfgDistillationSpec):
    """Looks on every worker whether the frozen teacher is split too, and lets the first one alone read weights then."""

    def build(self, context: TrainContext) -> CfgDistillation:
        if context.placement.engine == "deepspeed" and context.rank > 0:
            HunyuanVideoTransformer3DModel.from_pretrained = None
        objective = super().build(context)
        held = sum(parameter.numel() for parameter in objective.teacher.parameters())
        assert (held == 0) == (context.placement.engine == "deepspeed")  # between two forward passes
        return objective


def test_sharded_step_distillation_is_that_of_whole_networks(folders: Path, tmp_path: Path) -> None:
    def run(name: str, placement: dict[str, Any]) -> TrainResult:
        config = Dmd2Config.model_validate(DMD2 | {"placement": placement})
        spec = Dmd2Spec(config, CONFIG, folders / "data", folders / "teacher", folders / "student")
        return launch(spec, config, tmp_path / name, NullLog(), seed=0)

    assert_same(run("sharded", SHARDED), run("whole", DDP))


OWN_FRAMES = {"continued_fraction": 0.5, "own_frames_fraction": 1.0}  # each worker has another number of such clips
FULL = {"fake_score": "full", "a_weak": 0.0, "adversarial_weight": 0.1}


@pytest.mark.parametrize(("zero_stage", "options"), [(3, OWN_FRAMES), (2, FULL)])
def test_sharded_step_distillation_in_several_passes_is_that_of_whole_networks_in_one(
    folders: Path, tmp_path: Path, zero_stage: int, options: dict[str, Any]
) -> None:
    def run(name: str, placement: dict[str, Any]) -> TrainResult:
        config = Dmd2Config.model_validate(DMD2 | options | {"num_steps": 2, "placement": placement})
        spec = Dmd2Spec(config, CONFIG, folders / "data", folders / "teacher", folders / "student")
        return launch(spec, config, tmp_path / name, NullLog(), seed=0)

    assert_same(run("parts", SHARDED | {"zero_stage": zero_stage, "clips_per_pass": 1}), run("whole", DDP))


def test_sharded_step_distillation_in_bf16_is_nearly_that_of_whole_networks(folders: Path, tmp_path: Path) -> None:
    """What the 13B configuration trains with; guided, as otherwise the scores differ by little more than rounding."""

    def run(name: str, placement: dict[str, Any]) -> TrainResult:
        config = Dmd2Config.model_validate(DMD2 | BF16 | {"real_guidance_scale": 6.0, "placement": placement})
        spec = Dmd2Spec(config, CONFIG, folders / "data", folders / "teacher", folders / "student")
        return launch(spec, config, tmp_path / name, NullLog(), seed=0)

    assert losses(run("sharded", SHARDED)) == pytest.approx(losses(run("whole", DDP)), rel=0.02)


def test_sharded_guidance_distillation_in_bf16_is_nearly_that_of_whole_networks(folders: Path, tmp_path: Path) -> None:
    def run(name: str, placement: dict[str, Any]) -> TrainResult:
        config = CfgDistillationConfig.model_validate(SHORT | BF16 | {"placement": placement})
        spec = Watched(config, CONFIG, folders / "data", folders / "teacher")
        return launch(spec, config, tmp_path / name, NullLog(), seed=0)

    assert_alike(run("sharded", SHARDED), run("whole", DDP), folders / "teacher")


def test_sharded_guidance_distillation_is_that_of_whole_networks(folders: Path, tmp_path: Path) -> None:
    def run(name: str, placement: dict[str, Any]) -> TrainResult:
        config = CfgDistillationConfig.model_validate(SHORT | {"placement": placement})
        spec = Watched(config, CONFIG, folders / "data", folders / "teacher")
        return launch(spec, config, tmp_path / name, NullLog(), seed=0)

    whole = run("whole", DDP)
    assert_same(run("sharded", SHARDED), whole)
    assert_same(run("parts", SHARDED | {"clips_per_pass": 1}), whole)
