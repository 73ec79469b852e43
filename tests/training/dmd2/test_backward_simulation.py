"""The student's own chain in training, and windows that go on from its own frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magic141.models.generator import VideoGenerator
from magic141.models.sampling import SamplingSettings
from magic141.models.transformer import Prefix
from magic141.training.batches import Batch
from magic141.training.dmd2.backward_simulation import Generated
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.dmd2 import Dmd2
from magic141.training.dmd2.networks import Guidance
from magic141.training.random_numbers import step_generator
from tests.training.dmd2.tiny import PLACEMENT, build

NUM = 8


def continued(dmd2: Dmd2, fraction: float) -> Batch:
    return replace(dmd2.maker, continued_fraction=fraction).make(torch.arange(NUM), step_generator(0, 0))


def prefix_of(batch: Batch) -> Prefix:
    assert batch.prefix is not None
    return batch.prefix


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_continued_clips_know_what_the_second_window_of_a_long_video_knows(
    folders: Path, tmp_path: Path, sampler: Any
) -> None:
    dmd2 = build(folders, tmp_path, sampler=sampler)
    batch, w = continued(dmd2, 1.0), Guidance.fixed(dmd2.config, NUM)
    prefix, own = prefix_of(batch), prefix_of(dmd2.chain.with_own_frames(batch, w, rng()))
    data, config = dmd2.maker.dataset, dmd2.config
    video = VideoGenerator(
        dmd2.generator.module,
        dmd2.maker.null_text,
        dmd2.maker.num_latent_frames,
        SamplingSettings(
            config.num_inference_steps, config.shift, config.student_guidance_scale, "embedded", config.sampler
        ),
    )
    clips = torch.arange(NUM)
    anchor = prefix.latents[:, :, :1]
    first_window = video.sample(data.text(clips), data.anchor_tokens[clips].float(), anchor, seed=3)
    num_carried = prefix.mask[:, 0, 1:, 0, 0].sum(1).int().tolist()
    assert set(num_carried) == {1, 2}
    for row, carried in enumerate(num_carried):
        torch.testing.assert_close(own.latents[row, :, 1 : 1 + carried], first_window[row, :, -carried:])
    assert torch.equal(own.latents[:, :, :1], anchor)
    assert torch.equal(own.mask, prefix.mask)
    assert not torch.equal(own.latents, prefix.latents)


def test_clips_from_the_start_and_the_rest_of_the_batch_stay_as_they_are(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path)
    batch, w = continued(dmd2, 0.5), Guidance.fixed(dmd2.config, NUM)
    own = dmd2.chain.with_own_frames(batch, w, rng())
    changed = (prefix_of(own).latents != prefix_of(batch).latents).flatten(1).any(1)
    num_known = prefix_of(batch).mask[:, 0, :, 0, 0].sum(1)
    assert changed.tolist() == (num_known > 1).tolist()
    assert 0 < int(changed.sum()) < NUM
    assert own.x0 is batch.x0
    assert own.cond is batch.cond


def test_own_frames_of_a_clip_are_generated_at_its_own_w(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def still(network: Any, x_t: Tensor, sigma: Tensor, cond: Any, prefix: Any, w: Tensor) -> Tensor:
        seen.append(w)
        return torch.zeros_like(x_t)

    dmd2 = build(folders, tmp_path, student_guidance_range=(1.0, 3.0))
    batch, w = continued(dmd2, 0.5), Guidance.draw(dmd2.config, NUM, rng())
    monkeypatch.setattr("magic141.training.dmd2.backward_simulation.velocity", still)
    dmd2.chain.with_own_frames(batch, w, rng())
    expected = w.student[prefix_of(batch).mask[:, 0, :, 0, 0].sum(1) > 1]
    assert torch.equal(torch.cat(seen), expected.repeat(4)), "in each of four steps"


def test_a_part_of_generated_clips_has_their_conditions_and_w(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, student_guidance_range=(1.0, 3.0))
    batch, w = continued(dmd2, 0.5), Guidance.draw(dmd2.config, NUM, rng())
    part = Generated(batch.x0 + 1, batch, w, exit_step=2).part(slice(1, 3))
    assert torch.equal(part.x0, batch.x0[1:3] + 1)
    assert torch.equal(part.batch.x0, batch.x0[1:3])
    assert torch.equal(part.w.student, w.student[1:3])
    assert part.exit_step == 2


@pytest.mark.parametrize("size", [NUM, 2])
@pytest.mark.parametrize("split", [True, False])
def test_a_batch_without_continued_clips_calls_a_split_network_as_often(
    folders: Path, tmp_path: Path, size: int, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is split over ranks needs all of them, and ranks see other clips."""
    dmd2 = build(folders, tmp_path, batch_size=NUM, placement=PLACEMENT | {"clips_per_pass": size})
    monkeypatch.setattr(dmd2.generator, "sharded", split)
    w, sizes = Guidance.fixed(dmd2.config, NUM), []
    dmd2.generator.module.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["timestep"])), with_kwargs=True
    )
    batch = continued(dmd2, 0.0)
    assert torch.equal(prefix_of(dmd2.chain.with_own_frames(batch, w, rng())).latents, prefix_of(batch).latents)
    dmd2.chain.with_own_frames(continued(dmd2, 1.0), w, rng())
    num_calls = 4 * NUM // size
    assert sizes == [1] * (num_calls if split else 4) + [size] * num_calls


def test_own_frames_are_drawn_for_their_share_of_the_updates_and_alike_on_all_ranks(
    folders: Path, tmp_path: Path
) -> None:
    drawn = []
    for rank in range(2):
        dmd2 = build(folders, tmp_path, own_frames_fraction=0.3)
        dmd2.context = replace(dmd2.context, rank=rank, world_size=2)
        drawn.append([dmd2.draw_exit(step) for step in range(500)])
    assert drawn[0] == drawn[1]
    assert sum(one.own_frames for one in drawn[0]) == pytest.approx(150, abs=30)
    never = build(folders, tmp_path)
    assert [never.draw_exit(step).exit_step for step in range(500)] == [one.exit_step for one in drawn[0]]
    assert not any(never.draw_exit(step).own_frames for step in range(500))


def test_an_update_generates_from_own_frames(folders: Path, tmp_path: Path) -> None:
    dmd2 = build(folders, tmp_path, own_frames_fraction=1.0, continued_fraction=1.0)
    dmd2.step(0)
    clips = dmd2.maker.make(dmd2.sampler.indices(0), step_generator(0, 0))
    assert torch.equal(dmd2.fake_updates.replay[-1].batch.x0, clips.x0)
    assert not torch.equal(prefix_of(dmd2.fake_updates.replay[-1].batch).latents, prefix_of(clips).latents)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"continued_fraction": 0.0}, "no clip is continued with continued_fraction = 0"),
        ({"adversarial_weight": 0.1}, "use adversarial_weight = 0"),
        ({"generator_input": "noised_real"}, "generator_input = backward_simulation"),
    ],
)
def test_own_frames_are_refused_where_none_are_used_or_real_clips_are_needed(
    options: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        Dmd2Config.model_validate({"own_frames_fraction": 0.5} | options)
