from __future__ import annotations

from xml.etree import ElementTree

import pytest

from magic141.evaluation.reports.charts import Series, line_chart, smooth


def _svg(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart[: chart.index("</svg>") + 6])


def test_chart_is_well_formed_and_has_a_line_per_series() -> None:
    chart = line_chart([Series("a & b", [(0, 1), (1, 2)]), Series("c", [(0, 3)], dots=True)], "step")
    assert len(_svg(chart).findall("polyline")) == 2
    assert "a &amp; b" in chart


def test_the_ends_of_x_are_marked_and_the_chart_says_what_it_shows() -> None:
    chart = line_chart([Series("a", [(10, 1), (340, 2)])], "step", log_y=True, title="Loss <1>", level=1.5)
    texts = [text.text for text in _svg(chart).findall("text")]
    assert {"10", "100", "200", "340", "logarithmic"} <= set(texts)
    assert _svg(chart).attrib["aria-label"] == "Loss <1> over step: a"
    assert len([line for line in _svg(chart).findall("line") if "stroke-dasharray" in line.attrib]) == 1


def test_a_single_line_needs_no_legend() -> None:
    assert "legend" not in line_chart([Series("", [(0, 1), (1, 2)])], "step")
    assert "legend" in line_chart([Series("a", [(0, 1)]), Series("b", [(0, 2)])], "step")


def test_names_stand_on_the_axis_and_their_points_are_not_connected() -> None:
    points = Series("", [(0, 1), (1, 2)], dots=True, line=False)
    chart = _svg(line_chart([points], "sampler", x_names=["euler", "a <b>"]))
    assert [text.text for text in chart.findall("text") if text.find("title") is not None] == ["euler", "a <b>"]
    assert (len(chart.findall("circle")), chart.findall("polyline")) == (2, [])


def test_names_without_room_are_slanted_and_shortened_on_a_taller_chart() -> None:
    long = ["[" + ", ".join(map(str, range(number))) + "]" for number in (9, 10, 11)]
    chart = _svg(line_chart([Series("", [(0, 1)], line=False)], "steps", x_names=long))
    names = [text for text in chart.findall("text") if "rotate" in text.get("transform", "")]
    assert [name.findtext("title") for name in names] == long
    assert all(str(name.text).endswith("…") for name in names)
    assert int(chart.attrib["viewBox"].split()[-1]) > 300


def test_standard_errors_are_bars_within_the_chart() -> None:
    (bar,) = _svg(line_chart([Series("", [(0, 1)], dots=True, bars=[(0, -9, 11)])], "step")).findall("path")
    low, high = (float(bar.attrib["d"].split("M")[1].split()[1].split("V")[number]) for number in (0, 1))
    assert 14 <= high < low <= 190


def test_higher_values_are_drawn_higher() -> None:
    points = _svg(line_chart([Series("a", [(0, 1), (1, 2)])], "step")).findall("polyline")[0].attrib["points"].split()
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points)
    assert x1 > x0
    assert y1 < y0


@pytest.mark.parametrize("points", [[], [(0, float("nan"))]])
def test_nothing_to_draw_gives_nothing(points: list[tuple[float, float]]) -> None:
    assert line_chart([Series("a", points)], "step") == ""


@pytest.mark.parametrize("values", [(0.5, 0.5), (-1.0, 1.0), (1e-5, 10.0), (0.0, 0.0)])
def test_every_range_can_be_drawn_on_a_log_axis_or_falls_back(values: tuple[float, float]) -> None:
    chart = line_chart([Series("a", list(enumerate(values)))], "step", log_y=True)
    assert "nan" not in chart


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0.01, 8.0, ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5"]),
        (0.9, 2.1, ["1", "2"]),
        (0.23, 0.44, ["0.3", "0.4"]),
        (0.55, 0.9, ["0.5", "0.6", "0.7", "0.8", "0.9"]),
        (0.31, 0.34, ["0.3", "0.35"]),
    ],
)
def test_a_log_axis_has_marks_however_short_it_is(low: float, high: float, marks: list[str]) -> None:
    texts = _svg(line_chart([Series("a", [(0, low), (1, high)])], "step", log_y=True)).findall("text")
    assert [text.text for text in texts if text.get("x") == "46"] == marks


def test_smoothing_keeps_constants_and_limits_points() -> None:
    smoothed = smooth([(step, 2.0) for step in range(1000)])
    assert len(smoothed) <= 200
    assert {value for _, value in smoothed} == {2.0}
