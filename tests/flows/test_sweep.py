"""What a sweep is checked for before its first member runs, and what it shows of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.command_line.outcomes import say_sweep
from flows.failures.resume import CORRECT, RESUME, way_on
from flows.members import MemberOutcome
from flows.planning.grid import check_members, members_of, row_to_compare
from flows.sweep import SweepFailed, SweepOutcome
from magic141.errors import UserError

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("variant", "vary", "line"),
    [
        ("student_99", "seed=1,2", "^--variant student_99: member seed 1 has no such variant; it has teacher_"),
        ("student_4", "distill_dmd2.num_inference_steps=4,8", "^--variant student_4: member num_inference_steps 8 has"),
    ],
)
def test_every_member_has_the_variant_that_is_compared(variant: str, vary: str, line: str) -> None:
    members = check_members(DEMO, members_of([vary], []), ["generate.few_steps=[1]"])
    assert row_to_compare("student_1", "report", members) == "student_1"
    with pytest.raises(UserError, match=line):
        row_to_compare(variant, "report", members)
    assert row_to_compare(variant, "quantize", members) == variant, "nothing is scored"


@pytest.mark.parametrize("steps", [2, 8])
def test_the_student_that_is_compared_is_that_of_the_config(steps: int) -> None:
    overrides = [f"distill_dmd2.num_inference_steps={steps}", "generate.few_steps=[1]"]
    members = check_members(DEMO, members_of(["seed=1,2"], []), overrides)
    assert row_to_compare(None, "report", members) == f"student_{steps}"


@pytest.mark.parametrize(("second_is_mistake", "way"), [(True, CORRECT), (False, RESUME)])
def test_a_sweep_goes_on_by_the_same_command_unless_a_member_failed_by_a_mistake(
    second_is_mistake: bool, way: str
) -> None:
    members = (
        MemberOutcome(label="seed 1", error="RuntimeError: out of memory"),
        MemberOutcome(label="seed 2", error="UserError: no usable clip", is_mistake=second_is_mistake),
        MemberOutcome(label="seed 3", run_id="a1b2"),
    )
    failed = SweepFailed(SweepOutcome(run_id="c3d4", tracking_uri="sqlite://", members=members, seconds=1.0))
    assert way_on(failed) == way


def test_the_table_has_standard_errors_and_the_page_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    member = MemberOutcome(
        label="seed 1", run_id="a1b2", scores={"frechet": 75.01, "nfe": 4}, errors={"frechet": 13.21}
    )
    failed = MemberOutcome(label="seed 2", error="RuntimeError: out of memory")
    outcome = SweepOutcome(run_id="c3d4", tracking_uri="sqlite://", members=(member, failed), seconds=1.0)
    say_sweep(outcome)
    printed = capsys.readouterr().out
    assert "75.01 ±13.21" in printed
    assert "page" not in printed
    say_sweep(outcome.model_copy(update={"page": "/runs/sweeps/c3d4/sweep.html"}))
    assert "page    /runs/sweeps/c3d4/sweep.html\n" in capsys.readouterr().out
