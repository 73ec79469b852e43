"""At which step of its chain the student is trained."""

from __future__ import annotations

import pytest
import torch

from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.exit_shares import exit_shares
from magic141.training.dmd2.exit_step import ExitDraw, draw_exit_step

THIRD = 0.4 / 3


@pytest.mark.parametrize(
    ("num_steps", "first", "shares"),
    [
        (1, None, [1.0]),
        (2, None, [0.4, 0.6]),
        (3, None, [0.2, 0.2, 0.6]),
        (4, None, [THIRD, THIRD, THIRD, 0.6]),
        (4, 0.3, [0.3, 0.05, 0.05, 0.6]),
        (4, 0.0, [0.0, 0.2, 0.2, 0.6]),
    ],
)
def test_every_step_of_the_chain_is_left_as_often_as_its_share(
    num_steps: int, first: float | None, shares: list[float]
) -> None:
    config = Dmd2Config(num_inference_steps=num_steps, final_exit_fraction=0.6, first_exit_fraction=first)
    found = exit_shares(config)
    assert found == pytest.approx(shares)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_exit_step(found, generator) for _ in range(4000)])
    counts = torch.bincount(drawn, minlength=num_steps) / len(drawn)
    torch.testing.assert_close(counts, torch.tensor(found), atol=0.03, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_share_that_follows_from_the_others_cannot_be_set(num_steps: int) -> None:
    line = f"first_exit_fraction = 0.3: with num_inference_steps = {num_steps} .* use first_exit_fraction = null"
    with pytest.raises(ValueError, match=line):
        Dmd2Config(num_inference_steps=num_steps, first_exit_fraction=0.3)


@pytest.mark.parametrize(
    ("drawn", "shares"),
    [(0.0, (0.0, 1.0)), (1 - 2**-24, (0.5, 0.4999999))],  # the ends of what may be drawn; together less than that
)
def test_the_rarest_draws_too_are_steps_that_have_a_share(
    drawn: float, shares: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(drawn))
    assert draw_exit_step(shares, torch.Generator()) == 1


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-24])
@pytest.mark.parametrize(("fraction", "own_frames"), [(0.0, False), (1.0, True)])
def test_no_update_or_every_one_continues_the_students_frames(
    drawn: float, fraction: float, own_frames: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(drawn))
    assert ExitDraw.of((1.0,), fraction, torch.Generator()) == ExitDraw(0, own_frames)
