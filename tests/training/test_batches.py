"""Training windows: from the start of a clip, or continuing from anywhere in it with the first frame as anchor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from magic141.data.dataset import ClipDataset, load_null_text
from magic141.data.info import load_info
from magic141.data.rows import Rows
from magic141.evaluation.generation.suite import clip_conditions
from magic141.models.transformer import Conditioning, build_transformer
from magic141.training.batches import MAX_CARRIED, Batch, BatchMaker
from magic141.training.config import FlowMatchingConfig, PlacementConfig
from magic141.training.context import TrainContext
from magic141.training.flow_matching import FlowMatchingSpec
from magic141.training.random_numbers import step_generator
from tests.evaluation.artifacts import CHANNELS, make_data
from tests.models.tiny import CONFIG

NUM, LENGTH, WINDOW = 48, 7, 5


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> BatchMaker:
    """Clips whose latents say which frame they are."""
    folder = make_data(tmp_path_factory.mktemp("conditions") / "data")
    dataset = ClipDataset.open(folder, "train")
    numbers = torch.arange(1.0, LENGTH + 1).reshape(1, 1, -1, 1, 1).expand(dataset.latents.shape)
    dataset = replace(dataset, latents=Rows([numbers]), anchor=Rows([-torch.ones(dataset.anchor.shape)]))
    return BatchMaker(dataset, load_null_text(folder), WINDOW, image_condition=True)


def make(maker: BatchMaker, **changes: float) -> Batch:
    settings = {name: getattr(maker, name) for name in maker.__dataclass_fields__}
    return BatchMaker(**(settings | changes)).make(torch.arange(NUM), step_generator(0, 0))


def frames(batch: Batch) -> list[tuple[float, ...]]:
    return [tuple(row.tolist()) for row in batch.x0[:, 0, :, 0, 0]]


def test_one_pass_is_the_batch_itself_and_a_part_of_it_goes_without_padding_on_a_gpu(
    maker: BatchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention is fastest without a mask, which samples of other lengths need."""
    moved: list[torch.device] = []

    def to(self: Conditioning, device: torch.device) -> Conditioning:
        moved.append(device)
        return self.trimmed()

    monkeypatch.setattr(Conditioning, "to", to)
    batch = make(maker)
    mask = torch.ones(NUM, 4, dtype=torch.bool)
    mask[0, 3] = False
    text = Conditioning(torch.randn(NUM, 4, 2), mask, torch.randn(NUM, 3))
    batch = replace(batch, cond=text, uncond=text)
    assert batch.part(slice(0, NUM)) is batch
    assert batch.part(slice(0, 2)).cond.mask is not None
    assert moved == 2 * [batch.x0.device]
    first, rest = batch.part(slice(0, 1)), batch.part(slice(1, 3))
    assert first.cond.mask is None
    assert rest.uncond.mask is None
    assert torch.equal(first.cond.tokens, text.tokens[:1, :3])
    assert torch.equal(rest.uncond.tokens, text.tokens[1:3])
    assert torch.equal(rest.x0, batch.x0[1:3])
    assert batch.part(torch.tensor([2, 1])).cond.mask is None  # those that continue the student's own frames


def test_a_window_from_the_start_knows_the_first_frame(maker: BatchMaker) -> None:
    batch = make(maker)
    assert set(frames(batch)) == {(1, 2, 3, 4, 5)}
    assert batch.prefix is not None
    assert set(batch.prefix.mask.sum((1, 2, 3, 4)).tolist()) == {16}  # one latent frame of 4 x 4


def test_the_first_frame_is_known_as_a_picture_and_not_as_part_of_its_clip(maker: BatchMaker) -> None:
    """As in sampling, where there is only the picture: a codec that sees all frames would give the motion away."""
    alone = Rows([torch.full(maker.dataset.anchor.shape, 9.0)])
    with_pictures = replace(maker, dataset=replace(maker.dataset, first_latent=alone))
    batch = make(with_pictures)
    assert batch.prefix is not None
    assert set(batch.prefix.latents[:, :, 0].flatten().tolist()) == {9.0}
    assert set(frames(batch)) == {(1, 2, 3, 4, 5)}, "what is learnt is the clip"
    heldout = replace(maker.dataset, first_latent=alone)
    assert set(clip_conditions(heldout, [0, 1], num_known=2).prefix[:, 0, :, 0, 0].flatten().tolist()) == {9.0, 2.0}
    before = replace(maker, dataset=replace(maker.dataset, first_latent=None))  # prepared by an earlier version
    earlier = make(before).prefix
    assert earlier is not None
    assert set(earlier.latents[:, :, 0].flatten().tolist()) == {1.0}


def test_a_continued_window_knows_the_anchor_and_the_frames_before_the_new_ones(maker: BatchMaker) -> None:
    batch = make(maker, continued_fraction=1.0)
    assert set(frames(batch)) == {(-1, 2, 3, 4, 5), (-1, 3, 4, 5, 6), (-1, 4, 5, 6, 7)}
    assert batch.prefix is not None
    known = batch.prefix.mask[:, 0, :, 0, 0]
    assert set(known.sum(1).tolist()) == {1.0 + carried for carried in range(1, MAX_CARRIED + 1)}
    assert torch.equal(batch.prefix.latents, batch.x0 * batch.prefix.mask)
    num_image_tokens = maker.dataset.anchor_tokens.shape[1]
    assert torch.equal(batch.cond.tokens[:, :num_image_tokens], maker.dataset.anchor_tokens[:])


def test_dropped_conditions_leave_the_rest_alone(maker: BatchMaker) -> None:
    batch = make(maker, text_dropout=1.0)
    assert torch.equal(batch.cond.pooled, batch.uncond.pooled)
    assert torch.equal(batch.cond.tokens, batch.uncond.tokens)
    no_image = make(maker, image_dropout=1.0)
    assert no_image.prefix is not None
    assert float(no_image.prefix.mask.sum()) == 0
    num_image_tokens = maker.dataset.image_tokens.shape[1]
    assert float(no_image.cond.tokens[:, :num_image_tokens].abs().max()) == 0


def test_however_short_the_window_a_frame_is_left_to_generate(maker: BatchMaker) -> None:
    for num_latent_frames in (3, 4):
        batch = make(maker, num_latent_frames=num_latent_frames, continued_fraction=1.0)
        assert batch.prefix is not None
        assert int(batch.prefix.mask[:, 0, :, 0, 0].sum(1).max()) == num_latent_frames - 1


def test_the_generator_alone_decides(maker: BatchMaker) -> None:
    first, second = make(maker, continued_fraction=0.5), make(maker, continued_fraction=0.5)
    assert torch.equal(first.x0, second.x0)


def test_without_far_anchors_a_continued_window_is_one_from_the_start_with_more_known(maker: BatchMaker) -> None:
    batch = make(maker, continued_fraction=1.0, far_anchors=False)
    assert set(frames(batch)) == {(1, 2, 3, 4, 5)}
    assert batch.prefix is not None
    assert set(batch.prefix.mask[:, 0, :, 0, 0].sum(1).tolist()) == {2.0, 3.0}
    num_image_tokens = maker.dataset.image_tokens.shape[1]
    assert torch.equal(batch.cond.tokens[:, :num_image_tokens], maker.dataset.image_tokens[:])


def test_far_anchors_come_late_in_pretraining(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    info = load_info(data)
    placement = PlacementConfig(engine="plain", launcher="local", num_workers=1)
    config = FlowMatchingConfig(num_steps=10, continued_fraction=0.5, anchored_from=0.7, placement=placement)
    build_transformer(CONFIG, CHANNELS, info.text_width, info.pooled_width).save_pretrained(tmp_path / "t2v")
    objective = FlowMatchingSpec(config, CONFIG, data, tmp_path / "t2v", image_condition=True).build(
        TrainContext(0, 1, torch.device("cpu"), tmp_path, 0, placement)
    )
    assert [objective.maker_at(step).far_anchors for step in (0, 6, 7, 9)] == [False, False, True, True]


def test_a_model_that_knows_no_frames_sees_clips_as_they_go_on(maker: BatchMaker) -> None:
    """A window that continues from anywhere jumps behind its first frame: text to video would learn the jump."""
    batch = make(maker, image_condition=False, continued_fraction=1.0)
    assert set(frames(batch)) == {tuple(range(1, WINDOW + 1))}
    assert batch.prefix is None


def test_without_an_image_clips_are_windows_of_one_piece(maker: BatchMaker) -> None:
    """What continues a video would jump from its first frame to later ones, with nothing given to explain it."""
    batch = make(maker, continued_fraction=1.0, image_dropout=1.0)
    assert batch.prefix is not None
    assert not batch.prefix.mask.any()
    assert set(frames(batch)) == {tuple(float(number) for number in range(1, WINDOW + 1))}
