"""Which options of DMD2 fit together."""

from __future__ import annotations

from typing import Any

import pytest

from magic141.training.dmd2.config import Dmd2Config
from tests.training.dmd2.tiny import SHORT


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"fake_score": "full"}, "a_weak = 0.5: a full fake score has no adapter"),
        ({"regression_weight": 1.0}, "generator_input = noised_real"),
        (
            {"optimizer": {"kind": "adamw"}, "fake_optimizer": {"kind": "muon"}, "placement": {"engine": "deepspeed"}},
            "fake_optimizer.kind = muon: ZeRO stage",
        ),
        ({"min_score_time": 0.4, "max_score_time": 0.4}, "min_score_time = 0.4 is not below max_score_time = 0.4"),
        ({"student_guidance_range": (3.0, 1.0)}, "its ends are swapped"),
        ({"student_guidance_range": (2.0, 3.0)}, r"to contain student_guidance_scale = 1.2.*use \(1.2, 3.0\)"),
        (
            {
                "adversarial_weight": 1.0,
                "optimizer": {"kind": "adamw"},
                "placement": {"engine": "deepspeed", "zero_stage": 3},
            },
            "placement.zero_stage <= 2",
        ),
        ({"adversarial_weight": 0.1, "discriminator_weight": 0}, "adversarial_weight = 0.1: with discriminator_weight"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Dmd2Config.model_validate(options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_inference_steps": 3, "final_exit_fraction": 0.75, "first_exit_fraction": 0.25},
        {"student_guidance_range": (1.2, 1.2)},
        {"generator_lora_rank": 4, "student_guidance_range": (1.0, 3.0)},
        {"start": "teacher", "student_guidance_range": (1.0, 3.0)},
        {"discriminator_weight": 0},
        {"adversarial_weight": 1.0, "placement": {"engine": "ddp", "zero_stage": 3}},
        {
            "adversarial_weight": 1.0,
            "optimizer": {"kind": "adamw"},
            "placement": {"engine": "deepspeed", "zero_stage": 2},
        },
    ],
)
def test_options_that_just_fit_together_are_taken(options: dict[str, Any]) -> None:
    Dmd2Config.model_validate(options)


def test_any_scale_but_one_guides_the_real_score() -> None:
    assert [Dmd2Config(real_guidance_scale=w).is_guided for w in (0.5, 1.0, 2.0)] == [True, False, True]


def test_an_adapter_on_the_teacher_is_not_given_a_w_that_it_cannot_see() -> None:
    adapter = {"start": "teacher", "generator_lora_rank": 4, "student_guidance_range": (1.0, 3.0)}
    with pytest.raises(ValueError, match=r"student_guidance_range = .* never learns w.*use start = cfg_distilled"):
        Dmd2Config.model_validate(SHORT | adapter)
