"""Updates in several passes are those of one pass, to rounding: the same random numbers, gradients and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from magic141.data.dataset import load_null_text
from magic141.data.rows import Rows
from magic141.models.text_embedding import TextEmbedding
from magic141.stage_log import NullLog
from magic141.training.cfg_distillation import CfgDistillationSpec
from magic141.training.config import CfgDistillationConfig, FlowMatchingConfig, TrainConfig
from magic141.training.context import TrainContext
from magic141.training.dmd2.dmd2 import Dmd2
from magic141.training.engines.accumulation import Parts
from magic141.training.flow_matching import FlowMatchingSpec
from magic141.training.launch import launch
from magic141.training.objective import Objective
from magic141.training.single_network import SingleNetworkObjective
from tests.models.tiny import CONFIG
from tests.training.dmd2.tiny import OPTIONS, PLACEMENT, build
from tests.training.linear import LinearSpec, linear_config

ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "warmup_steps": 0}
REAL = {"generator_input": "noised_real", "regression_weight": 0.5}
DMD2: dict[str, dict[str, Any]] = OPTIONS | {
    "regression and adversarial": {**REAL, "adversarial_weight": 0.5},
    "regression and adversarial, full fake score": {
        **REAL,
        "adversarial_weight": 0.5,
        "fake_score": "full",
        "a_weak": 0.0,
    },
    "own frames, exit embedding, replay": {
        "continued_fraction": 0.5,
        "own_frames_fraction": 1.0,
        "exit_embedding": True,
        "replay_batches": 2,
    },
}


def null_text(data: Path) -> TextEmbedding:
    text = load_null_text(data)
    return TextEmbedding(text.tokens.double(), text.mask, text.pooled.double())


def doubled(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


@pytest.fixture
def _exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Double precision throughout, so that anything beyond rounding shows, although Adam magnifies rounding."""
    load = HunyuanVideoTransformer3DModel.from_pretrained
    monkeypatch.setattr(HunyuanVideoTransformer3DModel, "from_pretrained", lambda *a, **kw: load(*a, **kw).double())
    monkeypatch.setattr("magic141.training.batches.load_null_text", null_text)
    read = Rows.__getitem__
    monkeypatch.setattr(Rows, "__getitem__", lambda rows, index: doubled(read(rows, index)))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def in_parts(size: int | None) -> dict[str, Any]:
    return {"placement": PLACEMENT | {"clips_per_pass": size}, "optimizer": ADAMW, "batch_size": 4}


def flow_matching(folders: Path, run_dir: Path, size: int | None) -> SingleNetworkObjective:
    config = FlowMatchingConfig.model_validate({"num_steps": 2, "image_dropout": 0.3, **in_parts(size)})
    context = TrainContext(0, 1, torch.device("cpu"), run_dir, 0, config.placement)
    return FlowMatchingSpec(config, CONFIG, folders / "data", folders / "teacher", image_condition=True).build(context)


def cfg(folders: Path, run_dir: Path, size: int | None) -> SingleNetworkObjective:
    config = CfgDistillationConfig.model_validate({"num_steps": 2, "distillation_weight": 0.7, **in_parts(size)})
    context = TrainContext(0, 1, torch.device("cpu"), run_dir, 0, config.placement)
    return CfgDistillationSpec(config, CONFIG, folders / "data", folders / "teacher").build(context)


def dmd2(folders: Path, run_dir: Path, size: int | None, options: dict[str, Any]) -> Dmd2:
    few = {"fake_updates_per_step": 1, "fake_optimizer": ADAMW}
    return build(folders, run_dir, **few, **in_parts(size), **options)


def seeded(make: Callable[..., Any], *arguments: Any) -> Any:
    """Seeds as the loop does: the embedding of w is initialised at random."""
    torch.manual_seed(0)
    return make(*arguments)


def gradients(engine: Any) -> list[Tensor]:
    """The gradients of every update that the engine will take."""
    seen: list[Tensor] = []
    average = engine._average

    def averaging() -> None:
        seen.append(torch.cat(engine._gradients))
        average()

    engine._average = averaging
    return seen


def assert_same_updates(whole: Objective, parts: Objective, num_steps: int) -> None:
    updates = [{name: gradients(engine) for name, engine in of.engines.items()} for of in (whole, parts)]
    for step in range(num_steps):
        left, right = (
            {name: float(value) for name, value in objective.step(step).items()} for objective in (whole, parts)
        )
        assert right == pytest.approx(left, rel=1e-7)
    for name, expected in updates[0].items():
        for one, other in zip(expected, updates[1][name], strict=True):
            assert one.dtype == torch.float64
            assert float((one - other).norm() / one.norm()) < 1e-7
    for one_engine, other_engine in zip(whole.engines.values(), parts.engines.values(), strict=True):
        torch.testing.assert_close(other_engine.full_state_dict(), one_engine.full_state_dict(), rtol=0, atol=1e-7)


@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("make", [flow_matching, cfg])
def test_one_networks_updates_are_the_same(
    folders: Path, tmp_path: Path, make: Callable[..., SingleNetworkObjective], size: int
) -> None:
    whole, parts = (seeded(make, folders, tmp_path, clips) for clips in (None, size))
    assert_same_updates(whole, parts, num_steps=2)
    assert parts.validate() == pytest.approx(whole.validate(), rel=1e-6)


@pytest.mark.usefixtures("_exact")
@pytest.mark.parametrize("options", DMD2.values(), ids=DMD2)
def test_step_distillations_updates_are_the_same(folders: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """The update of the first step, after two of the fake score."""
    whole, parts = (seeded(dmd2, folders, tmp_path, size, options) for size in (None, 1))
    assert_same_updates(whole, parts, num_steps=1)
    assert parts.validate() == pytest.approx(whole.validate(), rel=1e-6)
    for left, right in zip(whole.fake_updates.replay, parts.fake_updates.replay, strict=True):
        torch.testing.assert_close(left.x0, right.x0, rtol=0, atol=1e-7)
        assert not right.x0.requires_grad


def test_no_pass_takes_more_clips_than_it_may(folders: Path, tmp_path: Path) -> None:
    distillation = dmd2(folders, tmp_path, 2, DMD2["own frames"])
    sizes: set[int] = set()
    for network in (distillation.generator.module, distillation.scores.network):
        network.register_forward_pre_hook(lambda _, args, kwargs: sizes.add(len(kwargs["timestep"])), with_kwargs=True)
    distillation.step(0)
    distillation.validate()
    assert max(sizes) == 2


def test_a_network_that_is_split_is_called_as_often_for_fewer_clips() -> None:
    """Workers differ in how many of their clips continue the student's own frames."""
    calls: list[Tensor] = []

    def evaluate(x_t: Tensor, sigma: Tensor) -> Tensor:
        calls.append(x_t)
        return 2 * x_t

    predict = Parts(size=2, num=3).over(evaluate, everywhere=True)
    for num_clips in range(1, 7):
        calls.clear()
        x_t = torch.randn(num_clips, 5)
        assert torch.equal(predict(x_t, torch.ones(num_clips)), 2 * x_t)
        assert len(calls) == 3


def test_the_engine_is_told_the_last_pass() -> None:
    told: list[tuple[float, bool]] = []
    engine: Any = type("Recorder", (), {"backward": lambda _, loss, last: told.append((float(loss), last))})()
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])
    mean = Parts(size=2, num=2).accumulate(engine, lambda rows: (values[rows].mean(), {"loss": values[rows].mean()}))
    assert told == [(1.0, False), (3.0, True)]
    assert float(mean["loss"]) == 4.0


def test_every_term_has_its_pass_and_figures_of_the_same_name_add_up() -> None:
    told: list[tuple[float, bool]] = []
    engine: Any = type("Recorder", (), {"backward": lambda _, loss, last: told.append((float(loss), last))})()
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])
    terms = [lambda rows, sign=sign: (sign * values[rows].mean(), {"sum": values[rows].mean()}) for sign in (1, -1)]
    assert float(Parts(size=2, num=2).accumulate(engine, *terms)["sum"]) == 8.0
    assert told == [(1.0, False), (-1.0, False), (3.0, False), (-3.0, True)]


@pytest.mark.parametrize(("size", "remedy"), [(3, 2), (5, 4), (8, 4)])
def test_passes_of_unequal_size_are_refused(size: int, remedy: int) -> None:
    placement = {"engine": "ddp", "num_workers": 2, "clips_per_pass": size}
    line = rf"^.*placement.clips_per_pass = {size}: expected a divisor of 4, a worker's clips .*; use {remedy}(?!\d)"
    with pytest.raises(ValueError, match=f"(?s){line}"):
        TrainConfig.model_validate({"num_steps": 1, "batch_size": 8, "placement": placement})


@pytest.mark.parametrize("size", [0, -1])
def test_passes_without_clips_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"(?s)placement\.clips_per_pass.*greater than or equal to 1"):
        TrainConfig.model_validate({"num_steps": 1, "placement": {"clips_per_pass": size}})


def test_workers_average_once_per_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after every pass: between machines the average can take longer than a pass."""
    config = linear_config(engine="ddp", launcher="ray", num_workers=2, clips_per_pass=1)
    calls: list[Tensor] = []
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, src: None)
    monkeypatch.setattr("torch.distributed.all_reduce", calls.append)
    objective = LinearSpec(config).build(TrainContext(0, 2, torch.device("cpu"), tmp_path, 0, config.placement))
    for step in range(3):
        objective.step(step)
        assert objective.parts == Parts(size=1, num=4)
        assert len(calls) == step + 1


@pytest.mark.parametrize(("before", "after"), [(None, 2), (2, None), (1, 4)])
def test_training_goes_on_with_other_passes(tmp_path: Path, before: int | None, after: int | None) -> None:
    straight = linear_config()
    expected = launch(LinearSpec(straight), straight, tmp_path / "straight", NullLog(), seed=0)
    broken, config = linear_config(clips_per_pass=before), linear_config(clips_per_pass=after)
    with pytest.raises(ZeroDivisionError):
        launch(LinearSpec(broken, crash_at=8), broken, tmp_path / "broken", NullLog(), seed=0)
    resumed = launch(LinearSpec(config), config, tmp_path / "broken", NullLog(), seed=0)
    assert resumed.resumed_from_step == 5
    left, right = (torch.load(result.export / "weights.pt")["ema"] for result in (expected, resumed))
    torch.testing.assert_close(right, left, rtol=1e-5, atol=1e-6)
