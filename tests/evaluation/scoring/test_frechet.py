from __future__ import annotations

import numpy as np
import pytest
import torch

from magic141.data.rows import Rows
from magic141.evaluation.scoring import frechet
from magic141.evaluation.scoring.frechet import TubeSpace, frechet_between, frechet_distance, frechet_error, moments


def test_identical_sets_have_distance_zero() -> None:
    a = np.random.default_rng(0).normal(size=(50, 4))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a) >= 0, "whatever the rounding: no distance is negative"


def test_moved_set_has_the_squared_distance_of_its_mean() -> None:
    a = np.random.default_rng(0).normal(size=(50, 4))
    assert frechet_distance(a, a + np.array([3.0, 0, 4, 0])) == pytest.approx(25)


def test_scaled_set_has_the_closed_form() -> None:
    a = np.random.default_rng(0).normal(size=(200, 3))
    centred = a - a.mean(0)
    # tr(C + 4C - 2*2C) = tr(C)
    assert frechet_distance(centred, 2 * centred) == pytest.approx(np.trace(np.cov(a, rowvar=False)))


def test_distance_is_symmetric_and_matches_scipy() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(90, 5))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b)))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_a_tube_is_one_place_through_channels_and_time() -> None:
    latents = torch.randn(6, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    space = TubeSpace.fit(latents, 32)
    projected = space.project(latents)
    assert projected.shape == (6 * 4, 2 * 3)
    tube = latents[5, :, :, 1, 0].flatten().double().numpy()
    assert projected[5 * 4 + 2] == pytest.approx((tube - space.mean) @ space.basis)


def test_space_keeps_the_largest_directions() -> None:
    latents = torch.randn(6, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    variances = TubeSpace.fit(latents, 3).project(latents).var(0)
    assert variances.shape == (3,)
    assert (np.diff(variances) <= 0).all()


def test_a_space_of_shorter_clips_is_fitted_on_the_first_frames() -> None:
    latents = torch.randn(6, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    shorter, expected = TubeSpace.fit(latents, 3, num_frames=2), TubeSpace.fit(latents[:, :, :2], 3)
    assert np.array_equal(shorter.mean, expected.mean)
    assert np.array_equal(shorter.basis, expected.basis)


def test_places_may_change_their_order_but_frames_may_not() -> None:
    latents = torch.randn(8, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).cumsum(2)
    space = TubeSpace.fit(latents, 6)
    real = space.project(latents)
    assert frechet_distance(real, space.project(latents.flip(4))) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, space.project(latents.flip(2))) > 0.1


def test_moments_of_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(70, 4)) + 1
    together = frechet_between(moments(a[:20]) + moments(a[20:]), moments(b))
    assert together == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_a_space_is_fitted_on_clips_of_all_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows lie video by video: the first that are enough would be consecutive windows of one."""
    video = torch.arange(10).repeat_interleave(6)
    noise = torch.randn(60, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    latents = noise + 9.0 * video.reshape(60, 1, 1, 1, 1)
    monkeypatch.setattr(frechet, "MAX_FIT_TUBES", 10 * 4)
    assert TubeSpace.fit(latents, 1).mean == pytest.approx(np.full(6, 9 * 4.5), abs=0.5)
    monkeypatch.setattr(frechet, "MAX_FIT_TUBES", 60 * 4)
    expected = latents.permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2).double().mean(0)
    assert TubeSpace.fit(latents, 1).mean == pytest.approx(expected.numpy())


def test_a_space_is_fitted_on_clips_of_all_sizes() -> None:
    lying = torch.randn(40, 2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    upright = 5 + torch.randn(40, 2, 3, 4, 2, generator=torch.Generator().manual_seed(1))
    tubes = torch.cat([clips.permute(0, 3, 4, 1, 2).flatten(3).flatten(0, 2) for clips in (lying, upright)])
    assert TubeSpace.fit(Rows([lying, upright]), 2).mean == pytest.approx(tubes.double().mean(0).numpy(), abs=1e-5)


def test_the_error_is_what_other_draws_of_clips_differ_by() -> None:
    """Places of a clip are alike, so that their number says little: what counts is how many clips there are."""
    rng, num_clips, num_places, num_rounds = np.random.default_rng(0), 48, 9, 2

    def clips(rounds: int) -> np.ndarray:
        own = rng.normal(size=(rounds * num_clips, 1, 3))
        return (own + 0.1 * rng.normal(size=(rounds * num_clips, num_places, 3))).reshape(-1, 3)

    draws = [(clips(1), clips(num_rounds)) for _ in range(60)]
    spread = np.std([frechet_distance(a, b) for a, b in draws])
    errors = [frechet_error(a, b, range(num_clips)) for a, b in draws]
    assert 0.6 < np.mean([error for error in errors if error is not None]) / spread < 1.6


def test_a_clip_is_left_out_together_with_its_own_futures() -> None:
    """Clips beside whose futures nothing changes have no error, also if they are no multiple of the groups."""
    rng, num_clips = np.random.default_rng(0), 24
    a, others = rng.normal(size=(num_clips * 3, 3)), rng.normal(size=(2 * num_clips * 3, 3))
    own, any_other = (frechet_error(a, b, range(num_clips)) for b in (np.concatenate([a, a]), others))
    assert own is not None
    assert any_other is not None
    assert own < 1e-3 * any_other


@pytest.mark.parametrize(("num_videos", "num_clips"), [(5, 51), (4, 64), (24, 10)])
def test_clips_of_a_video_say_as_much_as_one_if_they_are_alike(num_videos: int, num_clips: int) -> None:
    """They come in turns, one of every video; were they left out one by one, hardly anything would change."""
    rng, videos = np.random.default_rng(0), list(range(num_videos)) * num_clips

    def clips() -> np.ndarray:
        return np.tile(rng.normal(size=(num_videos, 2)), (num_clips, 1)) + 0.1 * rng.normal(size=(len(videos), 2))

    real = rng.normal(size=(2000, 2))[: len(videos)]
    draws = [clips() for _ in range(80)]
    spread = np.std([frechet_distance(a, real) for a in draws])
    errors = [frechet_error(a, real, videos) for a in draws]
    assert 0.5 < np.mean([error for error in errors if error is not None]) / spread < 2


def test_too_few_clips_have_no_error() -> None:
    a = np.random.default_rng(0).normal(size=(12, 4))
    assert frechet_error(a, a, ["video"]) is None
    assert frechet_error(a, a, ["video"] * 12) is None
    assert frechet_error(a, a, ["long"] * 9 + ["short"] * 3) is None, "without the long one three are left"
    assert frechet_error(a[:6], a[:6], range(2)) is None
