"""Line charts as inline SVG, without scripts or libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from magic141.errors import shortened

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 14, 30
COLOURS = ("#2f6fde", "#d9822b", "#2a9d6f", "#b0413e", "#7a5cc9", "#4a5568")
NUM_TICKS = 4
MIN_GAP = 0.08  # between marks of the x axis, of its length
CHAR_WIDTH = 5.8  # of names on the x axis, in pixels
MAX_NAME_CHARS, MAX_NAMES = 24, 24
SLANT = 60  # degrees, of names that are too long to stand side by side


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: its name in the legend; empty: it is not listed.
        points: (x, y), in order of x.
        dots: mark the points.
        bounds: y of dotted lines.
        bars: (x, lowest y, highest y), such as a value's standard error.
        line: connect the points.
    """

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    bounds: Sequence[float] = ()
    bars: Sequence[tuple[float, float, float]] = ()
    line: bool = True


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Position in [0, 1]."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values inside the axis; on a logarithmic one the roundest, of which there must be two."""
        rounded = (self._log_ticks(factors) for factors in ((1, 2, 5), range(1, 10))) if self.log else ()
        return next((ticks for ticks in rounded if len(ticks) > 1), None) or self._even_ticks()

    def _log_ticks(self, factors: Sequence[int]) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        candidates = [factor * 10.0**power for power in powers for factor in factors]
        return [value for value in candidates if self.low <= value <= self.high]

    def _even_ticks(self) -> list[float]:
        raw = (self.high - self.low) / NUM_TICKS
        step = 10.0 ** math.floor(math.log10(raw))
        step = next(step * factor for factor in (1, 2, 5, 10) if step * factor >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(
    series: Sequence[Series],
    x_label: str,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    whole_x: bool = True,
    title: str = "",
    level: float | None = None,
    x_names: Sequence[str] = (),
) -> str:
    """Draws the lines that have points.

    Args:
        series: the lines.
        x_label: what x counts.
        log_y: a logarithmic y axis, if all values are positive.
        y_range: ends of a linear y axis; None: those of the values.
        whole_x: label whole numbers only, as for steps.
        title: what the chart shows, for screen readers.
        level: y of a dashed line, such as what the lines should reach.
        x_names: what stands on the x axis at 0, 1, 2, … in place of numbers.

    Returns:
        An svg element and its legend; empty if there is no point.
    """
    drawn = [replace(line, points=[p for p in line.points if math.isfinite(p[1])]) for line in series]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    ys = [y for line in drawn for y in _heights(line)] + ([] if level is None else [level])
    y_axis = _axis(ys, log_y and min(ys) > 0) if y_range is None else _Axis(*y_range)
    x_axis = _Axis(-0.5, len(x_names) - 0.5) if x_names else _x_axis(drawn)
    marks, below = _names(x_axis, x_names) if x_names else (_numbers(x_axis, whole_x), 0)
    parts = [_grid(y_axis), marks, _x_title(x_label, HEIGHT + below)]
    parts += [] if level is None else [_level(y_axis, level, "#5d6b7a", "6 4")]
    parts += [_line(line, colour, x_axis, y_axis) for line, colour in zip(drawn, _colours(len(drawn)), strict=True)]
    labels = ", ".join(line.label for line in drawn if line.label)
    name = escape(f"{title or 'chart'} over {x_label}{labels and f': {labels}'}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT + below}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return f"{svg}{_legend(drawn)}"


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A running mean over a twentieth of the points, thinned to about 200 points."""
    width = max(1, round(len(points) / 20))
    means = []
    for index in range(len(points)):
        window = [y for _, y in points[max(0, index - width + 1) : index + 1]]
        means.append((points[index][0], sum(window) / len(window)))
    return means[:: max(1, len(means) // 200)]


def _heights(line: Series) -> list[float]:
    """Every y that must be on the chart."""
    return [*(y for _, y in line.points), *line.bounds, *(end for _, low, high in line.bars for end in (low, high))]


def _legend(drawn: Sequence[Series]) -> str:
    """The named lines with their colours; nothing if none has a name."""
    named = "".join(
        f'<span><i style="background:{colour}"></i>{escape(line.label)}</span>'
        for line, colour in zip(drawn, _colours(len(drawn)), strict=True)
        if line.label
    )
    return f'<div class="legend">{named}</div>' if named else ""


def _x_axis(drawn: Sequence[Series]) -> _Axis:
    xs = [x for line in drawn for x, _ in line.points]
    return _Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)


def _axis(values: Sequence[float], log: bool) -> _Axis:
    low, high = min(values), max(values)
    if log:
        return _Axis(low / 1.1, high * 1.1, log=True)
    margin = 0.05 * (high - low) or 0.5
    return _Axis(low - margin, high + margin)


def _colours(num: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(num)]


def _x(axis: _Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: _Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _level(axis: _Axis, value: float, colour: str, dashes: str) -> str:
    y, ends = _y(axis, value), f'x1="{LEFT}" x2="{WIDTH - RIGHT}"'
    return f'<line {ends} y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-dasharray="{dashes}"/>'


def _line(line: Series, colour: str, x_axis: _Axis, y_axis: _Axis) -> str:
    places = [(_x(x_axis, x), _y(y_axis, y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in places)
    bounds = "".join(_level(y_axis, bound, colour, "1 4") for bound in line.bounds)
    bars = "".join(_bar(_x(x_axis, x), _y(y_axis, low), _y(y_axis, high), colour) for x, low, high in line.bars)
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>' if line.line else ""
    return f"{bounds}{bars}{drawn}{dots if line.dots else ''}"


def _bar(x: float, low: float, high: float, colour: str) -> str:
    """A vertical bar with a foot at each end."""
    path = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-opacity="0.6"/>'


def _grid(y_axis: _Axis) -> str:
    parts = []
    for value in y_axis.ticks():
        y = _y(y_axis, value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{value:.4g}</text>')
    if y_axis.log:
        parts.append(f'<text x="{LEFT}" y="{TOP - 4}">logarithmic</text>')
    return "".join(parts)


def _x_title(label: str, height: int) -> str:
    return f'<text x="{WIDTH - RIGHT}" y="{height - 2}" text-anchor="end">{escape(label)}</text>'


def _numbers(axis: _Axis, whole: bool) -> str:
    """Marks of an x axis of numbers."""
    marks = [tick for tick in _with_ends(axis) if not whole or tick == round(tick)]
    places = f'y="{HEIGHT - BOTTOM + 14}" text-anchor="middle"'
    return "".join(f'<text x="{_x(axis, value):.1f}" {places}>{value:.4g}</text>' for value in marks)


def _names(axis: _Axis, names: Sequence[str]) -> tuple[str, int]:
    """Marks of an x axis of names, slanted where they have no room side by side; and the height that this adds."""
    longest = min(max(map(len, names)), MAX_NAME_CHARS) * CHAR_WIDTH
    slanted = max(map(len, names)) * CHAR_WIDTH > (WIDTH - LEFT - RIGHT) / len(names)
    every = math.ceil(len(names) / MAX_NAMES)
    marks = "".join(_name(_x(axis, index), names[index], slanted) for index in range(0, len(names), every))
    return marks, round(longest * math.sin(math.radians(SLANT))) if slanted else 0


def _name(x: float, name: str, slanted: bool) -> str:
    y = HEIGHT - BOTTOM + (10 if slanted else 14)
    place = f'text-anchor="end" transform="rotate(-{SLANT} {x:.1f} {y})"' if slanted else 'text-anchor="middle"'
    text = shortened(name, MAX_NAME_CHARS) if slanted else name
    return f'<text x="{x:.1f}" y="{y}" {place}>{escape(text)}<title>{escape(name)}</title></text>'


def _with_ends(axis: _Axis) -> list[float]:
    """The axis's ticks, its ends among them; what would touch an end gives way."""
    inner = [tick for tick in axis.ticks() if MIN_GAP <= axis.place(tick) <= 1 - MIN_GAP]
    return [axis.low, *inner, axis.high]
