"""Pretraining from a base, and its validation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from magic141.data.info import load_info
from magic141.errors import UserError
from magic141.models.transformer import build_transformer, load_transformer, make_prefix, velocity
from magic141.stage_log import NullLog
from magic141.training.batches import Batch
from magic141.training.config import FlowMatchingConfig, PlacementConfig
from magic141.training.context import TrainContext
from magic141.training.flow_matching import FlowMatching, FlowMatchingSpec, initial_network
from magic141.training.pretraining import take_base
from magic141.training.single_network import RandomNumbers
from tests.evaluation.artifacts import CHANNELS, RecordingLog, make_data
from tests.models.tiny import CONFIG, tiny_inputs, tiny_transformer


def distilled_base(folder: Path) -> tuple[HunyuanVideoTransformer3DModel, FlowMatchingConfig]:
    """A base as HunyuanVideo's own: w is an input of it."""
    base = tiny_transformer(guidance_embeds=True)
    base.save_pretrained(folder)
    return base, FlowMatchingConfig(base=str(folder), base_guidance_scale=6.0, num_steps=0)


def test_i2v_of_a_guidance_distilled_base_needs_no_guidance(tmp_path: Path) -> None:
    base, config = distilled_base(tmp_path / "base")
    network = initial_network(FlowMatchingSpec(config, CONFIG, tmp_path, tmp_path / "base", image_condition=True))
    x_t, sigma, cond = tiny_inputs()
    expected = velocity(base, x_t, sigma, cond, None, torch.full((3,), 6.0))
    torch.testing.assert_close(velocity(network, x_t, sigma, cond, make_prefix(x_t, 1)), expected)


def test_a_guidance_distilled_base_taken_as_it_is_becomes_a_teacher_without_guidance(tmp_path: Path) -> None:
    base, config = distilled_base(tmp_path / "base")
    log = RecordingLog()
    take_base(config, tmp_path / "out", log)
    taken = load_transformer(tmp_path / "out" / "transformer")
    x_t, sigma, cond = tiny_inputs()
    expected = velocity(base, x_t, sigma, cond, None, torch.full((3,), 6.0))
    torch.testing.assert_close(velocity(taken, x_t, sigma, cond), expected)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["num_parameters"] == sum(p.numel() for p in taken.parameters())
    assert log.summaries == record
    assert log.notes == []


def test_a_base_that_is_no_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"base = {tmp_path}: expected a diffusers transformer folder with config"):
        take_base(FlowMatchingConfig(base=str(tmp_path), num_steps=0), tmp_path / "out", NullLog())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow_matching")
    info = load_info(make_data(folder / "data"))
    build_transformer(CONFIG, CHANNELS, info.text_width, info.pooled_width).save_pretrained(folder / "t2v")
    return folder


def objective(folder: Path, rank: int, batch_size: int, **options: int) -> FlowMatching:
    """I2V pretraining on one of two workers; nothing that these tests do reaches the other one."""
    placement = PlacementConfig.model_validate({"engine": "plain", "launcher": "local", "num_workers": 1, **options})
    config = FlowMatchingConfig(num_steps=1, batch_size=batch_size, placement=placement)
    placement = placement.model_copy(update={"num_workers": 2})  # refused of a user: the plain engine averages nothing
    config = config.model_copy(update={"placement": placement})
    context = TrainContext(rank, 2, torch.device("cpu"), folder, 0, placement)
    return FlowMatchingSpec(config, CONFIG, folder / "data", folder / "t2v", image_condition=True).build(context)


@pytest.mark.parametrize("image_condition", [False, True])
@pytest.mark.parametrize("start", [None, "t2v"])
def test_a_new_network_and_one_that_is_trained_on_see_what_the_stage_trains(
    folder: Path, start: str | None, image_condition: bool
) -> None:
    begin = folder / start if start else None
    network = initial_network(FlowMatchingSpec(FlowMatchingConfig(), CONFIG, folder / "data", begin, image_condition))
    assert network.config.in_channels == (2 * CHANNELS + 1 if image_condition else CHANNELS)


def test_workers_share_the_clips_and_one_exports(folder: Path, tmp_path: Path) -> None:
    workers = [objective(folder, rank, batch_size=4) for rank in (0, 1)]
    first, second = (set(worker.sampler.indices(0).tolist()) for worker in workers)
    assert len(first | second) == 4
    workers[1].export(tmp_path)
    assert not list(tmp_path.iterdir())
    rows = [worker.validation_rows().tolist() for worker in workers]
    num_clips = load_info(folder / "data").num_clips["validation"]
    assert len(rows[0]) == len(rows[1]) == num_clips // 2
    assert not set(rows[0]) & set(rows[1])


def test_validation_clips_are_of_many_videos(folder: Path) -> None:
    worker = objective(folder, 0, batch_size=4)
    dataset = worker.validation.dataset
    dataset.truths[:] = [None] * len(dataset)  # in the shapes world every clip is a video of its own
    dataset.sources[:] = ["one"] * (len(dataset) - 1) + ["other"]
    rows = worker.validation_rows().tolist()
    assert {dataset.sources[row] for row in rows} == {"one", "other"}


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"batch_size": 4, "clips_per_pass": 1}])
def test_validation_takes_no_more_clips_at_once_than_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    worker = objective(folder, 1, **options)
    sizes: list[int] = []
    losses: list[float] = []
    loss = worker.loss

    def watched(batch: Batch, drawn: RandomNumbers) -> Tensor:
        sizes.append(len(batch.x0))
        losses.append(float(loss(batch, drawn)))
        return torch.tensor(losses[-1])

    monkeypatch.setattr(worker, "loss", watched)
    first, second = worker.validate(), worker.validate()
    assert sizes == [1] * 4, "two clips, one by one, twice"
    assert first == second, "the same noise and times every time"
    assert first["validation_loss"] == pytest.approx(sum(losses) / len(losses))
