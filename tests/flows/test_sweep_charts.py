from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from flows.members import MemberOutcome
from flows.planning.grid import check_members, members_of
from flows.sweep import CHARTED
from flows.sweep_charts import charts, first_varied, name_at, number_at
from magic141.config import load_config

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def swept(vary: Sequence[str]) -> list[tuple[str, ElementTree.Element]]:
    """The charts of a sweep whose members have the motion scores 0.5, 0.6, …, each ± 0.05."""
    members = check_members(DEMO, members_of(vary, []), [])
    outcomes = [
        MemberOutcome(label=member.label, run_id="a1", scores={"motion": 0.5 + number / 10}, errors={"motion": 0.05})
        for number, member in enumerate(members)
    ]
    drawn = charts(members, outcomes, CHARTED)
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


def test_the_axis_is_the_first_field_that_varies() -> None:
    members = members_of([], ["seed=1 distill_dmd2.a_weak=0", "seed=1 distill_dmd2.a_weak=0.5"])
    assert first_varied(check_members(DEMO, members, [])) == "distill_dmd2.a_weak"


def test_numbers_for_the_axis_of_a_chart() -> None:
    config = load_config(DEMO)
    assert number_at(config, "distill_dmd2.a_weak") == 0.5
    assert number_at(config, "distill_dmd2.sampler") is None


def test_names_for_the_axis_of_a_chart() -> None:
    listed, other = check_members(DEMO, members_of([], ["'generate.few_steps=[8, 4]' seed=1", "seed=2"]), [])
    assert name_at(listed, "generate.few_steps") == "[8, 4]"
    assert name_at(other, "generate.few_steps") == "[4, 2, 1]"
    assert listed.without("generate.few_steps").label == "seed 1"
