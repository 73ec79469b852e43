from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from magic141.errors import UserError
from magic141.stage_log import NullLog
from magic141.text_files import read_json_lines
from magic141.training import loop
from magic141.training.checkpoint import (
    CheckpointInfo,
    read_checkpoint,
    read_info,
    require_compatible,
    step_of,
    write_checkpoint,
)
from magic141.training.checkpoint_store import CheckpointStore
from magic141.training.config import METRICS_FILE, PlacementConfig, TrainConfig
from magic141.training.context import TrainContext
from magic141.training.launch import launch
from magic141.training.meter import Meter
from magic141.training.progress import read_rows
from tests.training.linear import LinearRegression, LinearSpec, linear_config


class RecordingLog(NullLog):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.notes: list[str] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.steps.append(step)

    def note(self, text: str) -> None:
        self.notes.append(text)


def weights(run_dir: Path) -> dict[str, Any]:
    ema: dict[str, Any] = torch.load(run_dir / "export" / "weights.pt")["ema"]
    return ema


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_there_is_not_is_said(tmp_path: Path) -> None:
    config = linear_config(gpus_per_worker=1)
    with pytest.raises(UserError, match=r"^placement.gpus_per_worker = 1: this machine has no GPU that torch can use"):
        launch(LinearSpec(config), config, tmp_path, NullLog(), seed=3)


def test_a_collapse_ends_a_worker_only_once_all_have_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end would end the others, too: their checkpoint would not be whole."""
    calls: list[str] = []
    for owner, name in ((CheckpointStore, "save"), (loop, "barrier"), (LinearRegression, "require_sound")):
        monkeypatch.setattr(owner, name, _recorded(calls, name, getattr(owner, name)))
    config = linear_config()
    launch(LinearSpec(config), config, tmp_path, NullLog(), seed=3)
    after_saving = [calls[place + 1] for place, name in enumerate(calls) if name == "save"]
    assert after_saving == ["barrier"] * calls.count("save")
    assert "require_sound" in calls[calls.index("save") :]


def _recorded(calls: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(*args: Any) -> Any:
        calls.append(name)
        return function(*args)

    return recorded


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_bit_equal(tmp_path: Path, optimizer: str) -> None:
    config = linear_config()
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"kind": optimizer})})
    straight = launch(LinearSpec(config), config, tmp_path / "straight", NullLog(), seed=3)

    with pytest.raises(ZeroDivisionError):
        launch(LinearSpec(config, crash_at=8), config, tmp_path / "broken", NullLog(), seed=3)
    torch.rand(17)  # another process would be in another random state
    log = RecordingLog()
    resumed = launch(LinearSpec(config), config, tmp_path / "broken", log, seed=3)

    assert resumed.resumed_from_step == 5
    assert resumed.metrics_file.read_bytes() == straight.metrics_file.read_bytes()
    assert log.steps == [2, 4, 5, 6, 8, 10, 12]  # the curve of the whole run
    assert "step 5" in log.notes[0]
    for name, value in weights(tmp_path / "straight").items():
        assert torch.equal(value, weights(tmp_path / "broken")[name]), name


def crash(config: TrainConfig, folder: Path) -> None:
    """A training that is lost at step 11, with checkpoints of steps 5 and 10."""
    with pytest.raises(ZeroDivisionError):
        launch(LinearSpec(config, crash_at=11), config, folder, NullLog(), seed=3)


def test_what_a_worker_that_is_no_more_left_behind_damages_nothing(tmp_path: Path) -> None:
    config = linear_config()
    crash(config, tmp_path)
    (tmp_path / "checkpoints" / "step-000010" / "objective-1.pt").write_bytes(b"half a file")
    assert launch(LinearSpec(config), config, tmp_path, NullLog(), seed=3).resumed_from_step == 10


def test_the_memory_of_a_training_is_that_of_the_attempt_that_took_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = linear_config()
    monkeypatch.setattr("magic141.training.usage._peak_memory_mb", lambda device: 700.0)
    crash(config, tmp_path)
    monkeypatch.setattr("magic141.training.usage._peak_memory_mb", lambda device: 100.0)
    assert launch(LinearSpec(config), config, tmp_path, NullLog(), seed=3).peak_memory_mb == 700.0


def test_finished_run_returns_without_training(tmp_path: Path) -> None:
    config = linear_config()
    first = launch(LinearSpec(config), config, tmp_path, NullLog(), seed=0)
    assert launch(LinearSpec(config, crash_at=0), config, tmp_path, NullLog(), seed=0) == first


def test_killed_before_the_export_is_committed(tmp_path: Path) -> None:
    config = linear_config()
    launch(LinearSpec(config), config, tmp_path, NullLog(), seed=0)
    before = weights(tmp_path)
    (tmp_path / "export").rename(tmp_path / ".staging-export-123")
    (tmp_path / "result.json").unlink()
    result = launch(LinearSpec(config, crash_at=0), config, tmp_path, NullLog(), seed=0)
    assert result.resumed_from_step == config.num_steps
    assert torch.equal(before["head.weight"], weights(tmp_path)["head.weight"])
    assert not (tmp_path / ".staging-export-123").exists()


def test_each_step_is_logged_once_and_loss_falls(tmp_path: Path) -> None:
    config = linear_config(num_steps=60)
    log = RecordingLog()
    result = launch(LinearSpec(config), config, tmp_path, log, seed=0)
    rows = [json.loads(line) for line in result.metrics_file.read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)) == log.steps
    assert steps[-1] == 60
    losses = [row["loss"] for row in rows]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_only_the_newest_two_checkpoints_stay(tmp_path: Path) -> None:
    config = linear_config(num_steps=20)
    launch(LinearSpec(config), config, tmp_path, NullLog(), seed=0)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000015", "step-000020"]


def test_validation_does_not_change_training(tmp_path: Path) -> None:
    config = linear_config()
    often = config.model_copy(update={"validate_every_steps": 1})
    launch(LinearSpec(config), config, tmp_path / "seldom", NullLog(), seed=0)
    launch(LinearSpec(often), often, tmp_path / "often", NullLog(), seed=0)
    assert torch.equal(weights(tmp_path / "seldom")["head.weight"], weights(tmp_path / "often")["head.weight"])


def test_divergence_is_a_users_error_and_leaves_no_bad_checkpoint(tmp_path: Path) -> None:
    config = linear_config()
    with pytest.raises(UserError, match=r"nan at step .*lower optimizer.learning_rate or .*max_grad_norm; any"):
        launch(LinearSpec(config, noise=float("nan")), config, tmp_path, NullLog(), seed=0)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_few_steps_with_a_broken_gradient_are_left_out_and_counted(tmp_path: Path) -> None:
    config = linear_config()  # a checkpoint every 5 steps
    spec, log = LinearSpec(config, bad_steps=(3, 4, 8)), RecordingLog()
    with pytest.raises(ZeroDivisionError):
        launch(replace(spec, crash_at=7), config, tmp_path / "few", log, seed=0)
    result = launch(spec, config, tmp_path / "few", log, seed=0)
    assert result.num_skipped == 3, "those before the crash, too"
    assert log.notes[-1] == f"3 of {config.num_steps} steps skipped an update, for non-finite gradients"
    assert all(bool(torch.isfinite(value).all()) for value in weights(tmp_path / "few").values())
    assert "NaN" not in result.metrics_file.read_text()
    skipped = {row["step"]: row.get("skipped_steps") for row in read_rows(result.metrics_file)}
    assert {skipped[2], skipped[6], skipped[12]} == {None, 2, 3}
    with pytest.raises(UserError, match=r"nan at step 7: training diverged"):
        launch(LinearSpec(config, bad_steps=(3, 4, 5, 6)), config, tmp_path / "many", NullLog(), seed=0)


def test_steps_before_0_prepare_and_are_gone_on_with_after_a_crash(tmp_path: Path) -> None:
    config = linear_config()  # a checkpoint every 5 steps
    spec = LinearSpec(config, first_step=-7)
    first_log = RecordingLog()
    straight = launch(spec, config, tmp_path / "straight", first_log, seed=3)
    assert first_log.notes == ["preparatory steps, which come first and are not counted: 7"]
    for crash_at, found in ((-3, -5), (3, 0)):
        with pytest.raises(ZeroDivisionError):
            launch(replace(spec, crash_at=crash_at), config, tmp_path / "broken", NullLog(), seed=3)
        *_, newest = sorted((tmp_path / "broken" / "checkpoints").iterdir(), key=lambda path: step_of(path.name))
        assert read_info(newest).step == found
    log = RecordingLog()
    resumed = launch(spec, config, tmp_path / "broken", log, seed=3)
    assert log.steps == [2, 4, 5, 6, 8, 10, 12]
    assert log.notes == [], "prepared already"
    assert resumed.metrics_file.read_bytes() == straight.metrics_file.read_bytes()
    unprepared = launch(LinearSpec(config), config, tmp_path / "unprepared", NullLog(), seed=3)
    assert resumed.metrics_file.read_bytes() != unprepared.metrics_file.read_bytes()


def test_what_all_workers_have_alike_is_written_once(tmp_path: Path) -> None:
    config = linear_config()
    places = [TrainContext(rank, 2, torch.device("cpu"), tmp_path, 0, config.placement) for rank in (0, 1)]
    for place in places:
        trained = LinearSpec(config).build(place)
        trained.step(0)
        write_checkpoint(
            tmp_path / "step-1", trained, [Meter()], place, CheckpointInfo(1, "plain", 2, 1, 1, 0.0, 0.0, 0.0, 0)
        )
    assert "ema" not in torch.load(tmp_path / "step-1" / "objective-1.pt")

    resumed = LinearSpec(config).build(places[1])
    read_checkpoint(tmp_path / "step-1", resumed, [Meter()], places[1])
    assert resumed.ema.num_updates == 1


def test_another_engine_cannot_take_over_a_deepspeed_checkpoint(tmp_path: Path) -> None:
    config = linear_config()
    with pytest.raises(ZeroDivisionError):
        launch(LinearSpec(config, crash_at=8), config, tmp_path, NullLog(), seed=0)
    info = tmp_path / "checkpoints" / "step-000005" / "info.json"
    info.write_text(info.read_text().replace('"plain"', '"deepspeed"'))
    with pytest.raises(UserError, match=r"placement.engine = plain.*holds .* step 5, written with engine = deepspeed"):
        launch(LinearSpec(config), config, tmp_path, NullLog(), seed=0)


def test_a_checkpoint_that_zero_has_split_otherwise_is_refused(tmp_path: Path) -> None:
    config = linear_config()
    with pytest.raises(ZeroDivisionError):
        launch(LinearSpec(config, crash_at=8), config, tmp_path, NullLog(), seed=0)
    info = read_info(tmp_path / "checkpoints" / "step-000005")
    placement = PlacementConfig(engine="deepspeed", zero_stage=3, num_workers=1)
    context = TrainContext(0, 1, torch.device("cpu"), tmp_path, 0, placement)
    with pytest.raises(UserError, match=r"zero_stage = 3: .* holds .* step 5, .* zero_stage = 2; use these"):
        require_compatible(replace(info, engine="deepspeed", zero_stage=2), context)
    with pytest.raises(
        UserError, match=r"sequence_parallel_size = 1, .*: .* sequence_parallel_size = 2, .*; use these"
    ):
        require_compatible(replace(info, engine="deepspeed", zero_stage=3, sequence_parallel_size=2), context)
    require_compatible(replace(info, engine="deepspeed", zero_stage=3), context)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[int, Mapping[str, float]]:
    """What the objective was asked to judge, by step."""
    values: dict[int, Mapping[str, float]] = {}
    monkeypatch.setattr(LinearRegression, "judge", lambda _, step, found: values.update({step: dict(found)}))
    return values


def test_every_validation_is_judged_with_all_figures(tmp_path: Path, judged: dict[int, Mapping[str, float]]) -> None:
    config = linear_config()
    launch(LinearSpec(config), config, tmp_path, NullLog(), seed=0)
    assert list(judged) == [6, 12]
    assert all(values.keys() == {"loss", "grad_norm", "validation_loss"} for values in judged.values())


def test_how_often_logs_and_checkpoints_are_written_changes_no_judgement(
    tmp_path: Path, judged: dict[int, Mapping[str, float]]
) -> None:
    """Neither is in a stage's key. Means are of all steps since the last validation, also after a crash."""
    seldom = linear_config(log_every_steps=100).model_copy(update={"checkpoint_every_steps": 100})
    launch(LinearSpec(seldom), seldom, tmp_path / "seldom", NullLog(), seed=0)
    expected = dict(judged)
    often = linear_config(log_every_steps=1).model_copy(update={"checkpoint_every_steps": 4})
    with pytest.raises(ZeroDivisionError):
        launch(LinearSpec(often, crash_at=9), often, tmp_path / "often", NullLog(), seed=0)
    judged.pop(6)
    launch(LinearSpec(often), often, tmp_path / "often", NullLog(), seed=0)
    assert judged == {12: expected[12]}


def test_a_run_is_stopped_with_its_last_checkpoint_written_and_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = linear_config()
    steps: list[int] = []

    def require_sound(_: LinearRegression) -> None:
        if list((tmp_path / "checkpoints").glob("step-*")):
            raise UserError("collapsed")

    def counted(objective: LinearRegression, step: int) -> dict[str, torch.Tensor | float]:
        steps.append(step)
        return whole(objective, step)

    whole = LinearRegression.step
    monkeypatch.setattr(LinearRegression, "require_sound", require_sound)
    monkeypatch.setattr(LinearRegression, "step", counted)
    often = config.model_copy(update={"checkpoint_every_steps": config.validate_every_steps})
    for _ in range(2):
        with pytest.raises(UserError, match="collapsed"):
            launch(LinearSpec(often), often, tmp_path, NullLog(), seed=0)
    assert steps == list(range(config.validate_every_steps))
    assert (tmp_path / "checkpoints" / f"step-{config.validate_every_steps:06d}").is_dir()


def test_the_figures_before_the_first_update_are_those_of_step_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = linear_config()
    launch(LinearSpec(config), config, tmp_path / "plain", NullLog(), seed=0)
    monkeypatch.setattr(LinearRegression, "begin", LinearRegression.validate)
    launch(LinearSpec(config), config, tmp_path / "begun", NullLog(), seed=0)
    plain, begun = (read_json_lines(tmp_path / name / METRICS_FILE) for name in ("plain", "begun"))
    assert begun[0].keys() == {"step", "validation_loss"}
    assert (begun[0]["step"], begun[1:]) == (0, plain), "it changes nothing that follows"


def test_what_earlier_attempts_took_counts(tmp_path: Path) -> None:
    config = linear_config()
    with pytest.raises(ZeroDivisionError):
        launch(LinearSpec(config, crash_at=8), config, tmp_path, NullLog(), seed=0)
    file = tmp_path / "checkpoints" / "step-000005" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 1000.0, "cpu_seconds": 2000.0}))
    result = launch(LinearSpec(config), config, tmp_path, NullLog(), seed=0)
    assert 1000 < result.seconds < 2000 < result.cpu_seconds
