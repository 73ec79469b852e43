import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.planning.estimates import IMAGE_TOKENS, Estimate, InputSizes, _num_evaluations, estimate
from flows.planning.plan import PlannedStage, _changed, _size, _time, _wishes, make_plan, total
from magic141.config import PipelineConfig, load_config, with_overrides
from magic141.config.checks import TRAINING_SECTIONS
from magic141.data.sizes import Size
from magic141.evaluation.generation.pieces import list_pieces
from magic141.evaluation.generation.workload import Workload
from magic141.evaluation.variants import list_variants, long_video_variants
from magic141.models.tiny_encoders import build_tiny_parts
from tasks.pipeline import STAGES
from tests.models.tiny import INFO
from tests.tasks.stages import FIRST

CONFIGS = Path(__file__).parents[3] / "configs"
DEMO = CONFIGS / "demo.yaml"


def test_a_stage_whose_source_is_missing_is_blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    videos = tmp_path / "videos"
    config = load_config(DEMO, ["data.source=folder", f"data.path={videos}", "pretrain_t2v.base=./nowhere"])
    first, second, *_ = make_plan(config, STAGES)
    assert (first.stage, first.action) == ("prepare_data", "blocked")
    assert first.why.startswith(f"data.path = {videos}: no such folder")
    assert (second.action, second.why) == ("run", "after prepare_data")

    videos.mkdir()
    assert next(make_plan(config, STAGES)).action == "run"


def test_a_stage_that_is_to_be_refreshed_without_its_source_is_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    config = load_config(DEMO, ["data.source=folder", f"data.path={tmp_path / 'videos'}"])
    first, *_ = make_plan(config, STAGES, refresh=["prepare_data"])
    assert first.action == "blocked"
    assert first.why.startswith(f"data.path = {tmp_path / 'videos'}: no such folder")


def test_a_stage_is_compared_with_the_nearest_of_its_runs() -> None:
    config = PipelineConfig()
    far, near = (
        FIRST.key(with_overrides(config, changes, "test"), {}) for changes in (["seed=1", "data.fps=9"], ["data.fps=7"])
    )
    records = [{"parts": "of another version"}, *({"parts": key.model_dump(mode="json")} for key in (far, near, far))]
    tracker: Any = SimpleNamespace(records=lambda stage, limit: records)
    row = _changed(FIRST, FIRST.key(config, {}), tracker)
    assert (row.action, row.why) == ("run", "changed: data.fps: 7.0 -> 8.0")


@pytest.mark.parametrize(
    "code",
    [
        f"from flows.cli import app; app(['plan', '{DEMO}'], standalone_mode=False)",
        "import flows.command_line.unchanged, tasks.pipeline",
    ],
)
def test_where_nothing_runs_nothing_that_takes_seconds_is_imported(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    then = "import sys; print({'torch', 'ray', 'diffusers', 'prefect', 'open_clip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}; {then}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_all_that_is_missing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    rows = {row.stage: row for row in make_plan(load_config(CONFIGS / "hunyuan_13b.yaml"), STAGES)}
    blocked = {stage for stage, row in rows.items() if row.action == "blocked"}
    assert blocked == {"prepare_data", "train_clip", "pretrain_t2v"}
    assert [line.partition(" ")[0] for line in rows["prepare_data"].why.splitlines()] == [
        "data.path",
        "data.codec.path",
        "data.encoder.path",
    ]


def test_what_a_blocked_stage_would_cost_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    config = load_config(CONFIGS / "hunyuan_one_node.yaml")
    rows = {row.stage: row for row in make_plan(config, STAGES)}
    assert rows["pretrain_i2v"].action == "blocked"
    assert rows["pretrain_i2v"].estimate == estimate("pretrain_i2v", config, None)


def test_what_this_machine_has_too_little_of_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config(DEMO, ["pretrain_i2v.placement.cpus_per_worker=5000"])
    lacking = {row.stage: row.lacking for row in make_plan(config, STAGES) if row.lacking}
    assert list(lacking) == ["pretrain_i2v"]
    assert re.match(r"pretrain_i2v.placement.num_workers = 2: with cpus_per_worker = 5000", lacking["pretrain_i2v"])


def test_generate_asks_for_gpus_when_workers_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    here = estimate("generate", load_config(DEMO), None)
    assert (here.resources, here.num_gpus) == ("this process", 0)
    workers = load_config(DEMO, ["generate.num_workers=3", "generate.gpus_per_worker=1"])
    asked = estimate("generate", workers, None)
    assert (asked.resources, asked.num_gpus) == ("3 x 1 CPU + 1 GPU (Ray tasks)", 3)


@pytest.mark.parametrize("stage", ["pretrain_i2v", "distill_cfg", "distill_dmd2"])
def test_the_papers_size_fits_the_gpus_it_is_for(stage: str) -> None:
    memory_gib = estimate(stage, load_config(CONFIGS / "hunyuan_13b.yaml"), None).memory_gib
    assert memory_gib is not None
    activations_gib = (
        44.4  # of the real network over a clip's 33 x 34 x 60 patches and 400 tokens, by following tensors
    )
    assert memory_gib == pytest.approx(activations_gib / 2 + 5, rel=0.2)  # two workers share a clip's tokens
    assert memory_gib < 80 - 15  # buffers, gathered weights and fragmentation


def test_memory_is_that_of_the_largest_clips() -> None:
    one, more = (
        estimate("distill_cfg", load_config(CONFIGS / "hunyuan_13b.yaml", [f"data.more_sizes={sizes}"]), None)
        for sizes in ("[]", "[[960, 544], [320, 320]]")
    )
    assert one == more, "upright clips take as much as lying ones, and small ones less"
    larger = estimate("distill_cfg", load_config(CONFIGS / "hunyuan_13b.yaml", ["data.more_sizes=[[960, 960]]"]), None)
    assert larger.memory_gib is not None
    assert one.memory_gib is not None
    assert larger.memory_gib > 1.3 * one.memory_gib
    generated = [
        estimate("generate", load_config(CONFIGS / "hunyuan_13b.yaml", [f"data.more_sizes={sizes}"]), None).seconds
        for sizes in ("[]", "[[960, 960]]")
    ]
    assert generated[0] == generated[1], "of the main size only"


def test_a_plan_knows_the_clips_of_an_earlier_training_again(tmp_path: Path) -> None:
    """Also if no video took one of the sizes."""
    asked = (Size(48, 32), Size(32, 64))
    config = load_config(DEMO, ["data.source=folder", f"data.path={tmp_path}", "data.more_sizes=[[48, 32], [32, 64]]"])
    recorded = INFO.model_copy(update={"more_sizes": asked, "num_of_size": {"32x32": 1, "48x32": 1}}).latent_size
    assert recorded == InputSizes.of(config).latent_size(config) == "4x4 6x4 4x8"


@pytest.mark.parametrize("name", ["hunyuan_13b", "hunyuan_one_node", "hunyuan_one_gpu", "smoke_13b"])
def test_a_config_says_what_its_plan_says(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    estimates = [estimate(stage, config, None).memory_gib for stage in TRAINING_SECTIONS]
    (most,) = re.findall(r"[Aa]t most (\d+) GiB", (CONFIGS / f"{name}.yaml").read_text())
    assert _size(max(memory for memory in estimates if memory is not None)) == f"{most} GiB"


@pytest.mark.parametrize("name", ["hunyuan_one_node", "hunyuan_one_gpu"])
def test_a_config_for_one_machine_says_how_long_it_takes(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    times = [estimate(stage.name, config, None).seconds or 0 for stage in STAGES]
    (hours,) = re.findall(r"about (\d+) hours", (CONFIGS / f"{name}.yaml").read_text())
    assert round(sum(times) / 3600) == int(hours)


def test_the_tiny_encoder_sees_as_many_image_tokens_as_the_estimate_says() -> None:
    llava = build_tiny_parts(["a circle"], 32, 0).text_encoder
    assert llava.config.image_seq_length == IMAGE_TOKENS["tiny"]


@pytest.mark.parametrize(
    ("memory_gib", "measured", "words"),
    [(0.05, True, "51 MiB each"), (2.34, False, "~ 2.3 GiB each"), (186.4, False, "~ 186 GiB each")],
)
def test_calculated_memory_is_marked(memory_gib: float, measured: bool, words: str) -> None:
    assert _wishes(Estimate("2 x 1 GPU", 2, None, False, memory_gib, measured)) == f"2 x 1 GPU, {words}"


@pytest.mark.parametrize(
    ("seconds", "timed", "words"), [(None, False, ""), (70.0, True, "70 s"), (7200.0, False, "~ 2.0 h")]
)
def test_calculated_time_is_marked(seconds: float | None, timed: bool, words: str) -> None:
    assert _time(Estimate("2 x 1 GPU", 2, seconds, timed, None, False)) == words


def test_the_times_of_all_stages_and_of_their_gpus_are_added_up() -> None:
    def row(stage: str, seconds: float | None, num_gpus: float = 0.0, timed: bool = True) -> PlannedStage:
        return PlannedStage(stage, "run", "", estimate=Estimate("", num_gpus, seconds, timed, None, False))

    reused, soon, calculated = PlannedStage("a", "reused", ""), row("b", 40.0), row("c", 7200.0, 8.0, timed=False)
    assert total([reused, soon, row("d", 20.0)]) == "in all  60 s"
    assert total([reused, soon, calculated, row("d", None)]) == "in all  ~ 2.0 h, ~ 16 GPU hours, without d"
    assert total([reused, soon]) == ""


def test_time_on_gpus_is_calculated_from_a_measured_pass_and_on_cpus_it_is_not() -> None:
    config = load_config(CONFIGS / "hunyuan_13b.yaml")
    stage = estimate("pretrain_i2v", config, None)
    pass_s = 39.7  # docs/results.md, of a frozen base; an update also computes gradients for its weights
    assert stage.seconds == pytest.approx(config.pretrain_i2v.num_steps * pass_s, rel=0.1)
    assert not stage.timed
    assert estimate("distill_dmd2", load_config(DEMO), None).seconds is None
    assert estimate("distill_dmd2", load_config(CONFIGS / "smoke_gpu.yaml"), None).seconds is None  # mostly to start


def timed_before(seconds: float, stepping_s: float) -> Any:
    """A store with one run of the demo's distillation: its last attempt, and the steps of all attempts."""
    before = load_config(DEMO).model_dump(mode="json")
    summary = {"steps": before["distill_dmd2"]["num_steps"], "seconds": stepping_s, "num_workers": 2}
    record = {"parts": {"config": before}, "seconds": seconds, "summary": summary | {"latent_size": "4x4"}}
    return SimpleNamespace(records=lambda stage, limit: [record])


@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        ("distill_dmd2.lora_rank=8", 100.0),
        ("distill_dmd2.num_steps=680", 30.0 + 2 * 70.0),
        ("distill_dmd2.num_steps=170", 30.0 + 70.0 / 2),
        ("model.num_layers=3", None),
        ("data.height=64", None),
    ],
)
def test_time_is_that_of_an_earlier_run_of_the_same_network_with_its_steps_scaled(
    change: str, seconds: float | None
) -> None:
    wants = estimate("distill_dmd2", load_config(DEMO, [change]), timed_before(100.0, 70.0))
    assert (wants.seconds, wants.timed) == (seconds, seconds is not None)


@pytest.mark.parametrize(
    ("change", "longer"),
    [
        ("distill_dmd2.batch_size=64", 4.0),
        ("distill_dmd2.placement.num_workers=1", 2.0),
        ("distill_dmd2.fake_updates_per_step=10", 2.29),
    ],
)
def test_of_more_work_in_a_step_the_time_is_calculated_from_an_earlier_run_and_marked(
    change: str, longer: float
) -> None:
    wants = estimate("distill_dmd2", load_config(DEMO, [change]), timed_before(100.0, 70.0))
    assert wants.seconds is not None
    assert (wants.seconds - 30.0) / 70.0 == pytest.approx(longer, rel=0.01)
    assert not wants.timed


def test_time_of_a_run_that_was_resumed_is_that_of_all_its_attempts() -> None:
    assert estimate("distill_dmd2", load_config(DEMO), timed_before(10.0, 70.0)).seconds == 70.0


def test_what_a_base_took_that_was_used_as_it_is_says_nothing_of_its_training() -> None:
    taken: Any = SimpleNamespace(records=lambda stage, limit: [{"seconds": 0.5, "summary": {"steps": 0}}])
    assert estimate("pretrain_t2v", load_config(DEMO), taken).seconds is None


@pytest.mark.parametrize("source", ["shapes", "folder"])
def test_the_evaluations_of_a_suite_are_counted_as_they_are_made(source: str, tmp_path: Path) -> None:
    config = load_config(DEMO, [f"data.source={source}", f"data.path={tmp_path}", "generate.num_exact_clips=7"])
    generate, info = config.generate, INFO.model_copy(update={"has_ground_truth": source == "shapes"})
    nothing: Any = None
    rows, long_rows = list(range(generate.num_exact_clips)), list(range(generate.long_video_clips))
    prompts = ["a circle"] * generate.num_prompts
    work = Workload(generate, info, tmp_path, rows, 5, prompts, [], nothing, long_rows, 0)
    dmd2 = config.distill_dmd2
    pieces = list_pieces(work, list_variants(generate, dmd2), long_video_variants(generate, dmd2), tmp_path)
    counted = _num_evaluations(generate, dmd2, has_ground_truth=source == "shapes")
    assert counted == sum(piece.num_evaluations for piece in pieces)


@pytest.mark.parametrize(
    ("change", "measured"),
    [
        ("distill_dmd2.optimizer.learning_rate=1e-5", True),
        ("distill_dmd2.batch_size=8", False),
        ("distill_dmd2.placement.clips_per_pass=2", False),
        ("distill_dmd2.placement.gradient_checkpointing=true", False),
        ("distill_dmd2.precision=bf16", False),
        ("distill_dmd2.lora_rank=8", False),
        ("model.num_layers=3", False),
        ("data.width=64", False),
    ],
)
def test_memory_is_that_of_an_earlier_run_only_if_that_was_of_the_same_size(change: str, measured: bool) -> None:
    before, config = (load_config(DEMO, ["distill_dmd2.batch_size=16", *more]) for more in ((), (change,)))
    placement = before.distill_dmd2.placement
    summary = {"num_workers": 2, "splitting": placement.splitting, "clips_per_pass": 8, "peak_memory_mb": 7.0 * 2**20}
    summary |= {"latent_size": "4x4"}
    earlier = {"parts": {"config": before.model_dump(mode="json")}, "summary": summary}
    tracker: Any = SimpleNamespace(records=lambda stage, limit: [earlier])
    wants = estimate("distill_dmd2", config, tracker)
    assert wants.measured == measured
    assert (wants.memory_gib == 7 * 1024 / placement.num_workers) == measured
