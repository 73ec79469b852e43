"""The config: composition, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from magic141.artifacts.references import flatten
from magic141.config import (
    PipelineConfig,
    load_config,
    missing_sources,
    to_yaml,
    validate,
    validate_stored,
    with_overrides,
    working_in,
)
from magic141.config.checks import TRAINING_SECTIONS
from magic141.errors import UserError
from magic141.evaluation.reports.report_curves import TRAINING_STAGES
from magic141.frozen import determines_result, key_fields
from magic141.training.config import OptimizerConfig, TrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["demo", "smoke", "smoke_gpu", "hunyuan_13b", "hunyuan_one_node", "hunyuan_one_gpu"])
def test_shipped_configs_validate_and_round_trip(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert validate(yaml.safe_load(to_yaml(config)), name) == config


def test_every_training_stage_is_checked_and_has_curves_in_the_report() -> None:
    sections = [name for name, section in PipelineConfig() if isinstance(section, TrainConfig)]
    assert [*TRAINING_SECTIONS] == sections == [*TRAINING_STAGES]


def test_a_workspace_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", "~nobody-of-this-name/runs")
    with pytest.raises(UserError, match=r"^workspace ~nobody-of-this-name/runs: .*; set MAGIC141_HOME or workspace to"):
        assert PipelineConfig().home


def test_a_home_that_is_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", "s3://bucket/runs")
    with pytest.raises(UserError, match=r"^workspace s3://bucket/runs: an address, expected a folder on this machine"):
        assert PipelineConfig().home
    with pytest.raises(UserError, match=r"^workspace gs:/bucket: an address"):
        working_in(Path("gs://bucket"))


def test_extends_and_set_compose(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\ndistill_dmd2: {num_steps: 7, a_weak: 0.25}\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\ndistill_dmd2: {num_steps: 8}\n")
    config = load_config(tmp_path / "top.yaml", ["distill_dmd2.lora_rank=4", "generate.few_steps=[2]", "name=a=b"])
    assert (config.distill_dmd2.num_steps, config.distill_dmd2.a_weak, config.distill_dmd2.lora_rank) == (8, 0.25, 4)
    assert (config.generate.few_steps, config.name) == ((2,), "a=b")


@pytest.mark.parametrize("field", ["distill_dmd2.fake_optimizer", "distill_cfg.optimizer"])
def test_a_section_given_in_part_keeps_the_rest_of_its_default(field: str) -> None:
    section, name = field.split(".")
    default = getattr(getattr(PipelineConfig(), section), name)
    changed = getattr(getattr(load_config(CONFIGS / "demo.yaml", [f"{field}.learning_rate=0.125"]), section), name)
    assert default != OptimizerConfig()
    assert changed == default.model_copy(update={"learning_rate": 0.125})


MISTAKES = {
    "quantize.exclude=[transformer_block]": "quantize.exclude",
    "quantize.exclude=[transformer_blocks,single_transformer_blocks]": "leaves no block to quantise",
    "train_clip.embed_dim=100": "embed_dim = 100: not divisible by head_width = 32; use a multiple of it",
    "data.codec.num_channels=193": "num_channels = 193: a patch of the first frame has 192 values; use at most 192",
    "data.encoder.width=9": "data.encoder.width = 9: expected a multiple of 2",
    "train_clip.release=openai": "release = openai: says which weights a file holds, but pretrained = None is no path",
    "train_clip.kind=pretrained": "train_clip.pretrained is not set: kind = pretrained needs a tag",
    "seed=true": "seed = true: true and false are not allowed here; expected another kind of value, such as a number; "
    "change it in demo.yaml or with --set",
    "data.shapes.exact_fraction=false": "data.shapes.exact_fraction = false: true and false are not allowed here",
    "generate.few_steps=[4, true]": "generate.few_steps = [4, true]: true and false are not allowed here",
    "model.rope_axes_dim=[7,8,9]": "model.rope_axes_dim = [7, 8, 9]: expected even widths of 2 or more",
    "publish.alias=latest": "publish.alias = 'latest': MLflow keeps `latest` and v1, v2, … for itself",
    "publish.champion=V2": "publish.champion = 'V2': MLflow keeps",
    "publish.alias=champion": "publish.alias = 'champion' is publish.champion too",
    "publish.model_name=it's": 'publish.model_name = "it\'s": expected',
    "distill_dmd2.num_stepz=3": "distill_dmd2.num_stepz = 3: unknown field in 'distill_dmd2'; did you mean 'num_s",
    "dota.x=1": "dota = {\"x\": 1}: unknown field in 'demo.yaml'; did you mean 'data'?",
    "distill_cfg.num_steps=0": "distill_cfg.num_steps = 0: expected greater than or equal to 1",
    "pretrain_t2v.lora_rank=8": "pretrain_t2v.lora_rank = 8: there is nothing to adapt without a base",
    "pretrain_t2v.num_steps=0": "pretrain_t2v.num_steps = 0 takes a base as it is, but base is not set",
    "pretrain_i2v.num_steps=0": "pretrain_i2v.num_steps = 0 takes a base as it is, but base is not set",
    "pretrain_i2v.num_steps=abc": "pretrain_i2v.num_steps = 'abc': expected a valid integer",
    "pretrain_i2v.placement.engine=dpp": "expected 'plain', 'ddp' or 'deepspeed'",
    "pretrain_i2v.placement.gpus_per_worker=2": "expected less than or equal to 1",
    "pretrain_i2v.placement.offload_optimizer=true": "only DeepSpeed's ZeRO stages 1 to 3 offload, not engine = ddp",
    "pretrain_i2v.placement.gpus_per_worker=0.5": "NCCL, which connects the 2 workers, needs a GPU per process",
    "pretrain_i2v.placement.sequence_parallel_size=3": "expected a divisor of num_workers = 2",
    "data.num_frames=12": "data.num_frames = 12: expected 2*k+1; use 11 or 13",
    "data.num_frames=9": "data.num_frames = 9: windows that continue",
    "data.height=36": "data.height = 36: not divisible by the codec's spatial factor 8; use a multiple of 8",
    "data.width=40": "data.width = 40: not divisible by codec factor 8 x model.patch_size 2; use a multiple of 16",
    "model.window_frames=8": "model.window_frames = 8: the codec needs 2*k+1 frames; use 7 or 9",
    "model.window_frames=15": "model.window_frames = 15: longer than data.num_frames = 13; use at most 13",
    "pretrain_t2v.placement.clips_per_pass=1" + "0" * 30: "expected a divisor of 8, a worker's clips of an update",
    "pretrain_t2v.batch_size=7": "pretrain_t2v.batch_size = 7: not divisible by placement.num_workers = 2",
    "distill_cfg.batch_size=6002": "distill_cfg.batch_size = 6002: the corpus has data.shapes.num_train = 6000 clips",
    "distill_dmd2.first_exit_fraction=0.5": "final_exit_fraction = 0.7 and first_exit_fraction = 0.5 are more than",
    "distill_dmd2.num_inference_steps=1001": "num_inference_steps = 1001: expected less than or equal to 64 (steps of",
    "generate.many_steps=2000": "generate.many_steps = 2000: the schedule has 1000 steps",
    "generate.num_exact_clips=1000": "generate.num_exact_clips = 1000: data.shapes.num_heldout = 512 clips",
    "generate.guidance_scale=9": "generate.guidance_scale = 9.0: distill_cfg covers 1.0 to 3.0",
    "generate.long_video_carried=3": "generate.long_video_carried = 3: expected less than or equal to 2",
    "model.window_frames=5": "generate.long_video_carried = 2: a window has 3 latent frames, one of them the anchor",
    "distill_dmd2.student_guidance_range=[1, 9]": "student_guidance_range = 9.0: distill_cfg covers 1.0 to 3.0",
    "publish.model_name=a/b": "publish.model_name = 'a/b': expected to match",
    "evaluate.vbench_dimensions=[beauty]": "expected 'temporal_flickering'",
    "data.source=folder": "data.path is not set",
    "data={source: folder, path: x, more_sizes: [[48, 24]]}": "data.more_sizes: 48x24: not divisible by codec factor x "
    "model.patch_size; use multiples of 16",
    "data={source: folder, path: x, more_sizes: [48]}": "data.more_sizes.0 = 48: expected a list in brackets",
    "data.more_sizes=[[48, 24]]": "data.more_sizes: the shapes world has clips of one size",
    "data.fps=.inf": "data.fps = inf: expected a finite number",
    "pretrain_i2v.optimizer.max_grad_norm=.inf": "pretrain_i2v.optimizer.max_grad_norm = inf: expected a finite number",
    "distill_cfg.optimizer.betas=[0.9, .nan]": "distill_cfg.optimizer.betas.1 = nan: expected a finite number",
    "publish.gate=[{metric: a, better: lower, limit: .nan}]": "publish.gate.0.limit = nan: expected a finite number",
    "distill_cfg.optimizer.betas=[0.9, 1]": "distill_cfg.optimizer.betas.1 = 1: expected less than 1 ",
    "distill_dmd2.fake_optimizer.betas=[-1, 0]": "distill_dmd2.fake_optimizer.betas.0 = -1: expected greater than",
    "distill_dmd2.a_weak=1": "distill_dmd2.a_weak = 1.0: expected below a_strong = 1.0",
    "distill_dmd2.a_strong=0.25": "distill_dmd2.a_weak = 0.5: expected below a_strong = 0.25",
    "generate.prompts=[a cat, ' ']": "generate.prompts = ('a cat', ' '): one of them is empty",
    "generate.few_steps=[4, 2, 4]": "generate.few_steps = (4, 2, 4): a number occurs twice",
    "seed=2147483648": "seed = 2147483648: expected less than or equal to 2147483647",
    "name=2024-02-30": "--set name=2024-02-30: not YAML (day is out of range for month",
    "seed=" + "[" * 3000: "[[[[…: nested too deeply",
    "data={fps: 1, fps: 2}": "--set data={fps: 1, fps: 2}: not YAML (duplicate key fps",
    "publish.gate=[{better: lower}]": "gate.0.metric: not set, but required; set it in demo.yaml or with --set publish."
    "gate=[…], the whole list",
    "model.rope_axes_dim=[1,2]": "model.rope_axes_dim.2: not set, but required; set it in demo.yaml or with --set "
    "model.rope_axes_dim=[…], the whole list",
    "model.window_frames=1": "model.window_frames = 1: long videos need windows of an anchor, generate.long_video_"
    "carried = 2 and a new latent frame; use at least 7",
    "model.window_frames=3": "a new latent frame; use at least 7",
    "data.shapes.num_train=1": "data.shapes.num_train = 1: too few for the smallest batch of train_clip; use at",
    "data={~: 2}": "data: null is not a field name, expected a string; rename it in demo.yaml; known: codec, cut_score",
    "workspace=s3://b/x": "workspace = 's3://b/x': an address, expected a folder on this machine; mount it; change it",
    "workspace=''": "workspace = '': empty, expected a folder; change it in demo.yaml",
    "name='  '": "name = '  ': expected a string of 1 to 250 characters on one line, not only blanks; change it in",
    'experiment="a\\nb"': r"experiment = 'a\nb': expected a string of 1 to 250 characters on one line",
    "publish.model_name=" + "m" * 251: "mmm...: expected a string of 1 to 250 characters on one line",
    "data.fps=1.0e-300": "data.fps = 1e-300: expected greater than or equal to 0.01",
    "data.fps=1.0e+300": "data.fps = 1e+300: expected less than or equal to 1000",
    "data.height=100000000": "data.height = 100000000: expected less than or equal to 16384",
    "train_clip.num_steps=1" + "0" * 40: "expected less than or equal to 1000000000",
    "distill_dmd2.num_steps=1" + "0" * 40: "expected less than or equal to 1000000000",
    "data": "--set data: expected FIELD=VALUE, such as --set distill_dmd2.num_steps=100",
    "distill_dmd2=": "distill_dmd2: empty, expected fields; remove the line from demo.yaml to take the defaults",
    "model=3": "model = 3: expected a section of fields; change it in demo.yaml",
    "generate.few_steps=4,1": "generate.few_steps = '4,1': expected a list in brackets, such as [4, 1] (smaller",
    "generate.few_steps=[]": "generate.few_steps = []: expected 1 or more values in brackets (smaller numbers of "
    "steps, for every model); change it in demo.yaml or with --set generate.few_steps=VALUE",
    "model.rope_axes_dim=[8, 8, 8, 8]": "rope_axes_dim = [8, 8, 8, 8]: expected 3 or fewer values in brackets (rotary",
    "workspace=3": "workspace = 3: expected a path (folder of artifacts",
    "publish.gate=[{metric: a, better: lower, limt: 1}]": "publish.gate.0.limt = 1: unknown field in 'publish.gate.0'; "
    "did you mean 'limit'?",
    "publish.gate=[{metric: a, better: lowr}]": "publish.gate.0.better = 'lowr': expected 'higher' or 'lower' (which",
    "publish.gate=[null]": "publish.gate.0 = null: expected a section of fields; change it in demo.yaml",
}


@pytest.mark.parametrize(("override", "line"), MISTAKES.items())
def test_a_mistake_is_one_line(override: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIGS / "demo.yaml", ["model.patch_size=2", "evaluate.frechet_dimensions=32", override])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_workers_that_split_tokens_divide_the_heads() -> None:
    three = ["distill_cfg.placement.num_workers=3", "distill_cfg.placement.sequence_parallel_size=3"]
    with pytest.raises(
        UserError, match=r"^distill_cfg.*_size = 3: expected a divisor of .*num_attention_heads = 4; use 1"
    ):
        load_config(CONFIGS / "demo.yaml", three)


@pytest.mark.parametrize(
    ("num_clips", "line"),
    [
        (8, "150: generate.num_exact_clips = 8 have 128"),
        (64, "201: a latent position of a window has only 200 numbers"),
    ],
)
def test_the_frechet_distance_needs_numbers_and_positions(num_clips: int, line: str) -> None:
    overrides = [f"generate.num_exact_clips={num_clips}", f"evaluate.frechet_dimensions={line.partition(':')[0]}"]
    with pytest.raises(UserError, match=f"evaluate.frechet_dimensions = {line}"):
        load_config(CONFIGS / "smoke.yaml", overrides)


def test_a_base_of_image_to_video_needs_no_text_to_video_model() -> None:
    base = [f"{stage}.num_steps=0" for stage in ("pretrain_t2v", "pretrain_i2v")]
    assert load_config(CONFIGS / "demo.yaml", [*base, "pretrain_i2v.base=./i2v"]).pretrain_t2v.base is None


def test_a_stored_config_may_have_fields_that_are_gone_since() -> None:
    config = load_config(CONFIGS / "demo.yaml")
    stored = config.model_dump(mode="json")
    stored["distill_dmd2"]["schedule_steps"] = 1000
    stored["data"]["shapes"]["min_speed"] = 0.8
    assert validate_stored(stored, "config.yaml of a run") == config
    stored["seed"] = "none"
    with pytest.raises(UserError, match="seed = 'none'"):
        validate_stored(stored, "config.yaml of a run")


def test_two_mistakes_are_two_lines() -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIGS / "demo.yaml", ["seed=-1", "train_clip.batch_size=one"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "not YAML"),
        ("a: [1\n", r"'<stream end>' in line 2, column 1, while parsing a flow sequence in line 1, column 4: a: \[1\)"),
        ("- 1", "expected fields with values, got list"),
        ("# nothing yet", "expected fields with values, got nothing; see configs/demo.yaml"),
        ("extends: 3", "expected one file name"),
        ("seed: 1\nname: a\nseed: 2", r"not YAML \(duplicate key seed in line 3, column 1: seed: 2\)"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("name: 2024-13-45", r"config .*bad.yaml: not YAML \(month must be in 1..12 .* line 1, .*name: 2024-13-45"),
        ("name: a\nseed: 0x_", "line 2, .*seed: 0x_"),
        ("seed: !!int abc", "line 1, .*seed: !!int abc"),
        ("seed: !!bool abc", "line 1, .*seed: !!bool abc"),
        ("seed: " + "9" * 5000, "5000 digits.* line 1"),
        ("seed: 0x" + "f" * 5000, "4300 digits.* line 1"),
        ("data: &a {shapes: *a}", r"the alias \*a stands inside the collection .* line 1"),
        ("seed: 1\ngenerate: {few_steps: &a [1, *a]}", r"the alias \*a stands inside the collection .* line 2"),
        ("? [a, b]\n: 1", "a list or section where a field's name is expected .* line 1"),
        ('name: "\\UFFFFFFFF"', "config .*bad.yaml: not YAML"),
        ('extends: "a\\0b"', r"extends = 'a\\x00b': expected one file name"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=line):
        load_config(tmp_path / "bad.yaml")


def test_a_file_that_only_links_to_itself_and_values_inside_themselves_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(UserError, match=r"config .*loop.yaml: cannot be read"):
        load_config(tmp_path / "loop.yaml")
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(UserError, match="a run: nested too deeply, or in itself"):
        validate({"generate": {"few_steps": endless}}, "a run")


def test_missing_file_and_endless_extends(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "top.yaml").write_text("extends: none.yaml")
    with pytest.raises(UserError, match=r"none.yaml: no such file, but .*top.yaml extends it; beside it: top.yaml"):
        load_config(tmp_path / "top.yaml")
    (tmp_path / "a.yaml").write_text("extends: a.yaml")
    with pytest.raises(UserError, match="extends itself"):
        load_config(tmp_path / "a.yaml")


def test_missing_folders_are_reported_before_work(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "demo.yaml", ["data.source=folder", f"data.path={tmp_path / 'videos'}"])
    assert [line.split(":")[0] for line in missing_sources(config)] == [f"data.path = {tmp_path / 'videos'}"]


def test_missing_clip_weights_are_reported_before_work(tmp_path: Path) -> None:
    weights, pretrained = tmp_path / "w.pt", "train_clip.kind=pretrained"
    config = load_config(CONFIGS / "demo.yaml", [pretrained, f"train_clip.pretrained={weights}"])
    assert [line.split(":")[0] for line in missing_sources(config)] == [f"train_clip.pretrained = {weights}"]
    weights.touch()
    tag = load_config(CONFIGS / "demo.yaml", [pretrained, "train_clip.pretrained=openai"])
    assert [*missing_sources(config), *missing_sources(tag)] == []


@pytest.mark.parametrize("field", ["data.path", "data.codec.path", "pretrain_t2v.base", "train_clip.pretrained"])
@pytest.mark.parametrize("address", ["s3://bucket/videos", "https://host/a.tar", "gs:/bucket"])
def test_addresses_are_no_paths(field: str, address: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIGS / "demo.yaml", [f"{field}={address}"])
    assert str(caught.value).startswith(
        f"{field} = '{address}': an address, expected a path on this machine; mount it or copy it here"
    )
    assert "\n" not in str(caught.value)


def test_paths_are_absolute_and_a_tilde_is_the_home_folder_for_everything_after_the_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    paths = ("data.path=~/videos", "data.encoder.path=./a~b", "pretrain_t2v.base=~/no", "train_clip.pretrained=~/w.pt")
    config = load_config(CONFIGS / "demo.yaml", ["data.source=folder", *paths])
    assert (config.data.path, config.data.encoder.path) == (tmp_path / "videos", f"{tmp_path}/a~b")
    assert config.train_clip.pretrained == f"{tmp_path}/w.pt"
    assert [line.split(":")[0] for line in missing_sources(config)] == [f"pretrain_t2v.base = {tmp_path}/no"]


def test_the_place_of_a_source_is_not_in_keys() -> None:
    here, there = (load_config(CONFIGS / "hunyuan_13b.yaml", [f"data.path={path}"]) for path in ("a", "/b"))
    assert key_fields(here.data) == key_fields(there.data)
    assert key_fields(PipelineConfig().data)["path"] is None  # so that keys of work without sources stay what they were


def test_placement_is_not_in_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = PipelineConfig()
    other = with_overrides(config, ["pretrain_i2v.checkpoint_every_steps=7", "workspace=elsewhere"], "x")
    assert key_fields(config.pretrain_i2v) == key_fields(other.pretrain_i2v)
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    assert other.home == tmp_path


def test_a_field_determines_a_result_if_it_is_in_the_key() -> None:
    config = load_config(CONFIGS / "demo.yaml")
    in_key = {name for name, _ in flatten(key_fields(config))}
    for name, _ in flatten(config.model_dump(mode="json")):
        assert determines_result(PipelineConfig, name) == (name in in_key), name
    assert determines_result(PipelineConfig, "distill_dmd2.of_an_older_version")
