from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from magic141.data.dataset import ClipDataset, load_null_text
from magic141.data.videos.video import read_video
from magic141.evaluation.config import GenerateConfig
from magic141.evaluation.generation.long_videos import long_latents
from magic141.evaluation.generation.suite import clip_conditions
from magic141.evaluation.measurement import SAMPLED_ON
from magic141.evaluation.variants import list_variants
from magic141.models.generator import VideoGenerator
from magic141.models.sampling import SamplingSettings
from magic141.models.transformer import load_transformer
from magic141.training.dmd2.config import Dmd2Config
from tests.evaluation.artifacts import GENERATE, NUM_FRAMES, RecordingLog

FOUR_STEPS = SamplingSettings(4, 5.0, 1.2, "embedded", "renoise")
Generated = tuple[dict[str, Path], RecordingLog]


def test_variants_are_named_and_ordered_as_the_table_expects() -> None:
    names = [variant.name for variant in list_variants(GenerateConfig(many_steps=25), Dmd2Config())]
    assert names == [
        *("teacher_25", "teacher_4", "teacher_2", "teacher_1"),
        *("cfg_25", "cfg_4", "cfg_2", "cfg_1", "cfg_chain_4", "cfg_chain_2", "cfg_chain_1"),
        *("student_4", "student_2", "student_1", "int8_4"),
    ]


def test_variants_count_two_evaluations_only_with_cfg() -> None:
    nfe = {
        variant.name: variant.num_evaluations for variant in list_variants(GenerateConfig(many_steps=25), Dmd2Config())
    }
    assert (nfe["teacher_25"], nfe["cfg_25"], nfe["student_4"], nfe["int8_4"]) == (50, 25, 4, 4)


def test_the_student_is_compared_with_what_it_started_from_in_the_same_chain() -> None:
    dmd2 = Dmd2Config(student_guidance_scale=1.8, shift=6.0, sampler="euler")
    variants = {variant.name: variant for variant in list_variants(GenerateConfig(), dmd2)}
    for steps in (4, 2, 1):
        before, student = (
            (v.num_steps, v.sampler, v.shift, v.guidance_scale, v.num_evaluations)
            for v in (variants[f"cfg_chain_{steps}"], variants[f"student_{steps}"])
        )
        assert before == student == (steps, "euler", 6.0, 1.8, steps)


def test_the_same_step_count_twice_gives_one_variant() -> None:
    names = [variant.name for variant in list_variants(GenerateConfig(many_steps=4), Dmd2Config())]
    assert len(names) == len(set(names))


def test_every_variant_continues_the_same_open_clips(generated: Generated) -> None:
    out = generated[0]["generate"]
    conditions = [json.loads(line) for line in (out / "exact" / "conditions.jsonl").read_text().splitlines()]
    assert len(conditions) == GENERATE.num_exact_clips
    assert not any(clip["truth"]["exact"] for clip in conditions)
    for variant in json.loads((out / "variants.json").read_text()):
        tensors = load_file(out / "exact" / f"{variant['name']}.safetensors")
        assert tensors["frames"].shape == (GENERATE.num_exact_clips, 9, 32, 32, 3)
        assert tensors["latents"].shape[2] == 5
        assert variant["cpu_ms_per_clip"] > 0
        assert variant["weight_mb"] > 0


def test_more_steps_give_other_videos_and_int8_almost_the_same(generated: Generated) -> None:
    out = generated[0]["generate"] / "exact"
    latents = {name: load_file(out / f"{name}.safetensors")["latents"] for name in ("student_4", "student_1", "int8_4")}
    int8_error = (latents["student_4"] - latents["int8_4"]).norm() / latents["student_4"].norm()
    assert 0 < int8_error < 0.05
    assert (latents["student_4"] - latents["student_1"]).norm() / latents["student_4"].norm() > int8_error


def test_progress_reaches_its_end(generated: Generated) -> None:
    log = generated[1]
    assert log.advanced == log.total > 0


def test_sheets_and_costs_are_logged(generated: Generated) -> None:
    log = generated[1]
    assert log.images["samples/student_4"].dtype == np.uint8
    assert log.images["long/student_4"].ndim == 3
    assert log.summaries["teacher_5/cpu_ms_per_clip"] > log.summaries["student_1/cpu_ms_per_clip"]
    assert (
        log.summaries[SAMPLED_ON] == json.loads((generated[0]["generate"] / "variants.json").read_text())[0]["device"]
    )


def test_suite_holds_prompts_times_seeds_times_variants(generated: Generated) -> None:
    suite = generated[0]["generate"] / "suite"
    prompts = [json.loads(line) for line in (suite / "prompts.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in prompts}) == GENERATE.num_prompts
    for variant in json.loads((generated[0]["generate"] / "variants.json").read_text()):
        assert len(list((suite / variant["name"]).glob("*.mp4"))) == GENERATE.num_prompts * GENERATE.num_seeds
    assert read_video(suite / "student_4" / "00-s1.mp4").shape == (9, 128, 128, 3)


def test_continuations_are_compared_with_the_frames_that_were_not_given(generated: Generated) -> None:
    parts = generated[0]
    tensors = load_file(parts["generate"] / "exact" / "continuation-student_4.safetensors")
    # 5 latent frames, of which 3 are known: 4 of 9 frames are generated
    assert tensors["frames"].shape == tensors["truth"].shape == (GENERATE.num_continuation_clips, 4, 32, 32, 3)
    clip = json.loads((parts["generate"] / "exact" / "conditions.jsonl").read_text().splitlines()[0])
    row = int(clip["id"].removeprefix("heldout"))
    stored = load_file(parts["prepare_data"] / "shards" / "heldout-00000.safetensors")["frames"][row]
    assert stored.shape[0] == NUM_FRAMES
    assert torch.equal(tensors["truth"][0], stored[5:9])


def test_long_videos_have_costs_for_every_window(generated: Generated) -> None:
    folder = generated[0]["generate"] / "long"
    record = json.loads((folder / "windows.json").read_text())
    assert set(record["variants"]) == {"student_4", "teacher_2"}
    assert [len(windows) for windows in record["variants"].values()] == [3, 3]
    frames = load_file(folder / "student_4.safetensors")["frames"]
    assert frames.shape[:2] == (GENERATE.long_video_clips, record["frames"][-1][1])
    assert read_video(folder / "long.mp4").shape[0] == frames.shape[1]


def test_without_ground_truth_nothing_is_called_determined(generated_from_folder: dict[str, Path]) -> None:
    out = generated_from_folder["generate"]
    for file in (out / "exact").glob("*.safetensors"):
        assert load_file(file).keys() == {"latents"}, "no pixels of clips that are not shown"
    assert not list((out / "long").glob("*.safetensors"))
    assert not list((out / "exact").glob("continuation-*"))
    assert (out / "exact" / "student_4.safetensors").is_file()


@pytest.mark.parametrize("value", [0])
def test_empty_suite_sizes_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="num_prompts"):
        GenerateConfig(num_prompts=value)


def test_a_bfloat16_model_samples_almost_the_same(generated: Generated) -> None:
    """What a GPU does: weights and products in bfloat16, states in float32."""
    parts = generated[0]
    clips = ClipDataset.open(parts["prepare_data"], "heldout")
    conditions = clip_conditions(clips, range(3))
    latents = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_transformer(parts["distill_dmd2"] / "transformer", dtype).eval()
        generator = VideoGenerator(model, load_null_text(parts["prepare_data"]), 5, FOUR_STEPS)
        latents.append(generator.sample(conditions.text, conditions.image_tokens, conditions.prefix, seed=0))
    assert latents[1].dtype == torch.float32
    assert 0 < (latents[0] - latents[1]).norm() < 0.05 * latents[0].norm()


def test_fused_windows_make_a_video_as_long_as_chained_ones(generated: Generated) -> None:
    parts = generated[0]
    clips = ClipDataset.open(parts["prepare_data"], "heldout")
    conditions = clip_conditions(clips, range(2)).part(slice(2))
    model = load_transformer(parts["distill_dmd2"] / "transformer").eval()
    generator = VideoGenerator(model, load_null_text(parts["prepare_data"]), 5, FOUR_STEPS)
    videos = {}
    counted: list[int] = []
    for scheme in ("chained", "fused"):
        config = GENERATE.model_copy(update={"long_video_scheme": scheme})
        videos[scheme], costs = long_latents(config, generator, conditions, 0, counted.append)
        assert len(costs) == GENERATE.long_video_windows
        assert all(window["cpu_ms_per_clip"] > 0 for window in costs)
    assert videos["chained"].shape == videos["fused"].shape == (2, *clips.latents.shape[1:2], 9, 4, 4)
    assert sum(counted) == 2 * 2 * 4 * GENERATE.long_video_windows
    given = (conditions.text, conditions.image_tokens, conditions.prefix)
    torch.testing.assert_close(generator.fuse(*given, 1, 2, seed=5), generator.sample(*given, seed=5))


def test_models_that_are_sampled_alone_have_the_guidance_and_shift_of_the_config() -> None:
    config = GenerateConfig(many_steps=25, guidance_scale=2.5, shift=7.0)
    alone = [v for v in list_variants(config, Dmd2Config()) if v.sampler == "euler"]
    assert {v.model for v in alone} == {"teacher", "cfg"}
    assert {(v.guidance_scale, v.shift) for v in alone} == {(2.5, 7.0)}
