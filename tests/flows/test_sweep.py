"""What a sweep is checked for before its first member runs, and what it shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flows.command_line.outcomes import say_sweep
from flows.failures.resume import CORRECT, RESUME, way_on
from flows.members import MemberOutcome
from flows.planning.grid import check_members, members_of
from flows.sweep import SweepFailed, SweepOutcome, charts, check_variant
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
    members = members_of([vary], [])
    configs = check_members(DEMO, members, ["generate.few_steps=[1]"])
    check_variant("student_1", members, configs)
    with pytest.raises(UserError, match=line):
        check_variant(variant, members, configs)


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


def swept(vary: Sequence[str]) -> list[tuple[str, ElementTree.Element]]:
    """The charts of a sweep whose members have the motion scores 0.5, 0.6, …, each ± 0.05."""
    members = members_of(vary, [])
    outcomes = [
        MemberOutcome(label=member.label, run_id="a1", scores={"motion": 0.5 + number / 10}, errors={"motion": 0.05})
        for number, member in enumerate(members)
    ]
    drawn = charts(members, check_members(DEMO, members, []), outcomes)
    return [(title, ElementTree.fromstring(f"<div>{chart}</div>")) for title, chart in drawn]


def test_numbers_are_a_line_with_standard_errors_and_one_line_has_no_legend() -> None:
    [(title, chart)] = swept(["distill_dmd2.a_weak=0,0.25,0.5"])
    assert title == "motion ↑"
    assert [len(chart.findall(f"svg/{tag}")) for tag in ("polyline", "circle", "path")] == [1, 3, 3]
    assert chart.find("div") is None


def test_a_second_field_has_a_line_per_value() -> None:
    [(_, chart)] = swept(["distill_dmd2.a_weak=0,0.5", "seed=1,2"])
    assert len(chart.findall("svg/polyline")) == 2
    assert ["".join(name.itertext()) for name in chart.findall("div/span")] == ["seed 1", "seed 2"]


def test_values_that_are_no_numbers_are_names_with_points_beside_each_other() -> None:
    [(_, chart)] = swept(["generate.few_steps=[4],[8, 4]", "seed=1,2"])
    assert [text.text for text in chart.findall("svg/text") if text.find("title") is not None] == ["[4]", "[8, 4]"]
    assert chart.find("svg/polyline") is None
    assert len({dot.attrib["cx"] for dot in chart.findall("svg/circle")}) == 4


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
