"""What a sweep is checked for before its first member runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.grid import members_of
from flows.sweep import check_members, check_variant
from magic141.frozen import UserError

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("variant", "vary", "line"),
    [
        ("student_99", "seed=1,2", "^--variant student_99: member seed 1 has no such variant; it has teacher_"),
        ("student_4", "distill_dmd2.num_inference_steps=4,8", "^--variant student_4: member num_inference_steps 8 has"),
    ],
)
def test_every_member_has_the_variant_that_is_compared(variant: str, vary: str, line: str) -> None:
    members = members_of([vary], [])
    configs = check_members(DEMO, members, ["generate.few_steps=[1]"])
    check_variant("student_1", members, configs)
    with pytest.raises(UserError, match=line):
        check_variant(variant, members, configs)
