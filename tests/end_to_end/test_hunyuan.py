"""The 13B configurations from their checkpoints to models: every class and option of them, with tiny sizes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from magic141.config import load_config
from magic141.data.config import ShapesConfig
from magic141.data.info import load_info
from magic141.data.shapes import ShapeClip, render_clip, sample_clip
from magic141.data.videos.video import write_video
from magic141.export import load_bundle_info
from magic141.models.config import HUNYUAN_SIZES
from magic141.models.transformer import build_transformer, load_transformer
from tasks.pipeline import STAGES
from tests.end_to_end.commands import ROOT, Finished, artifact, finish, made
from tests.models.tiny import tiny_checkpoint, tiny_vae

CONFIG = Path(__file__).with_name("hunyuan_tiny.yaml")
NUM_VIDEOS = 24  # whole ones are held out
WIDTH = 32  # of the tiny checkpoint's encoders

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos and checkpoints where the configs look for them."""
    folder = tmp_path_factory.mktemp("hunyuan")
    captions = [clip.caption for clip in make_videos(folder / "videos")]
    checkpoint = tiny_checkpoint(folder / "checkpoints" / "HunyuanVideo-I2V", captions)
    tiny_vae(HUNYUAN_SIZES.channels).save_pretrained(checkpoint / "vae")
    for name, is_i2v in (("HunyuanVideo", False), ("HunyuanVideo-I2V-33ch", True)):
        base = build_transformer(load_config(CONFIG).model, HUNYUAN_SIZES.channels, WIDTH, WIDTH, is_i2v, not is_i2v)
        torch.nn.init.normal_(base.proj_out.weight, std=0.02)
        base.save_pretrained(folder / "checkpoints" / name / "transformer")
    clip = open_clip.create_model("ViT-S-32-alt")
    save_file(clip.state_dict(), folder / "checkpoints" / "open_clip_vit_l_14.safetensors")
    return folder


def make_videos(folder: Path, numbers: Iterable[int] = range(NUM_VIDEOS)) -> list[ShapeClip]:
    """Captioned videos of the shapes world, 20 frames each, lying and upright ones by turns."""
    clips = [sample_clip(rng, ShapesConfig()) for rng in map(np.random.default_rng, numbers)]
    for number, clip in zip(numbers, clips, strict=True):
        height, width = (48, 32) if number % 2 else (32, 48)
        write_video(folder / f"{number}.mp4", render_clip(clip, 20, height, width), fps=24)
        (folder / f"{number}.txt").write_text(clip.caption)
    return clips


@pytest.fixture(scope="module")
def completed(place: Path) -> Finished:
    return finish(place / "runs", "run", str(CONFIG), cwd=place)


def test_every_stage_is_made(completed: Finished) -> None:
    assert completed.code == 0, completed.output
    assert completed.stages("✓") == [stage.name for stage in STAGES]


def test_upright_videos_train_in_their_own_shape(place: Path, completed: Finished) -> None:
    assert load_info(artifact(place / "runs", "prepare_data")).more_sizes_found == ((48, 32),)
    shards = {path.name.partition("-")[0] for path in artifact(place / "runs", "prepare_data").glob("shards/*")}
    assert shards == {"train", "train_48x32", "validation", "heldout"}
    student = artifact(place / "runs", "publish")
    assert load_bundle_info(next(student.rglob("magic141.json")).parent).sizes == ((32, 48), (48, 32))


def test_the_base_is_the_teacher_of_text_to_video_with_its_guidance_folded_in(place: Path, completed: Finished) -> None:
    taken = load_transformer(artifact(place / "runs", "pretrain_t2v") / "transformer")
    assert not taken.config.guidance_embeds
    assert json.loads((artifact(place / "runs", "pretrain_t2v") / "training.json").read_text())["steps"] == 0


@pytest.mark.parametrize("stage", ["pretrain_i2v", "distill_cfg", "distill_dmd2"])
def test_trainings_are_split_and_recompute_as_the_config_says(place: Path, completed: Finished, stage: str) -> None:
    record = json.loads((artifact(place / "runs", stage) / "training.json").read_text())
    assert (record["steps"], record["splitting"]) == (2, "deepspeed, ZeRO 3, checkpointing, tokens over 2")


def test_the_published_student_is_in_bfloat16(place: Path, completed: Finished) -> None:
    (weights,) = (artifact(place / "runs", "publish")).rglob("transformer/*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}


def test_the_report_tells_what_cannot_be_known(place: Path, completed: Finished) -> None:
    page = (artifact(place / "runs", "report") / "report.html").read_text()
    assert "Exact scores are not applicable" in page
    assert "DMD2 step distillation" in page
    assert "Text to video (flow matching)" not in page, "nothing was trained"


@pytest.fixture(scope="module")
def on_one_node(place: Path) -> Finished:
    """The teacher of `hunyuan_one_node.yaml`, in a workspace of its own."""
    config = place / "one_node_tiny.yaml"
    config.write_text(CONFIG.read_text().replace("../../configs/hunyuan_13b", f"{ROOT}/configs/hunyuan_one_node"))
    return finish(place / "one" / "runs", "run", str(config), "--until", "pretrain_i2v", cwd=place)


def test_on_one_node_an_image_to_video_base_is_trained_on_and_no_other_is_needed(
    place: Path, on_one_node: Finished
) -> None:
    assert on_one_node.code == 0, on_one_node.output
    (untrained,) = made(place / "one" / "runs", "pretrain_t2v")
    assert not (untrained / "transformer").exists()
    trained = made(place / "one" / "runs", "pretrain_i2v")[0]
    assert json.loads((trained / "training.json").read_text())["clips_per_pass"] == 1
    base = load_transformer(place / "checkpoints" / "HunyuanVideo-I2V-33ch" / "transformer")
    network = load_transformer(trained / "transformer")
    torch.testing.assert_close(network.proj_out.weight, base.proj_out.weight, atol=1e-4, rtol=0)


def test_on_one_gpu_branches_are_trained_and_merged(place: Path, on_one_node: Finished) -> None:
    config = place / "one_gpu_tiny.yaml"
    text = CONFIG.read_text().replace("../../configs/hunyuan_13b", f"{ROOT}/configs/hunyuan_one_gpu")
    config.write_text(text.replace("placement: {num_workers: 2,", "placement: {num_workers: 1,"))
    done = finish(place / "one" / "runs", "run", str(config), "--until", "distill_dmd2", cwd=place)
    assert done.code == 0, done.output
    assert done.stages("↺") == ["prepare_data", "train_clip", "build_index", "pretrain_t2v"], "as on one node"
    adapted, distilled, student = (
        load_transformer(made(place / "one" / "runs", stage)[-1] / "transformer").state_dict()
        for stage in ("pretrain_i2v", "distill_cfg", "distill_dmd2")
    )
    for before, after in ((adapted, distilled), (distilled, student)):
        changed = {name for name, value in before.items() if not torch.equal(after[name], value.bfloat16().float())}
        assert any("transformer_blocks.0.attn.to_q" in name for name in changed)
        assert not any("norm_out" in name or "context_embedder" in name for name in changed)


def test_a_corpus_that_grew_costs_what_is_new_in_it(place: Path, completed: Finished) -> None:
    """Last, for there are two corpora then."""
    before = artifact(place / "runs", "prepare_data")
    make_videos(place / "videos", [NUM_VIDEOS])
    (place / "videos" / "0.txt").write_text("a blue square moves down")
    num_clips = sum(load_info(before).num_clips.values())
    done = finish(place / "runs", "run", str(CONFIG), "--until", "prepare_data", cwd=place)
    assert done.code == 0, done.output
    copied = f"{num_clips} of {num_clips + 1} clips are copied from an earlier corpus, which encoded them alike, 1 of"
    assert copied in " ".join(done.output.split())
