"""Line charts as inline SVG, without scripts or libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 30
COLOURS = ("#2f6fde", "#d9822b", "#2a9d6f", "#b0413e", "#7a5cc9", "#4a5568")
NUM_TICKS = 4
MIN_GAP = 0.08  # between marks of the x axis, of its length


@dataclass(frozen=True)
class Series:
    """A line: points (x, y) in order of x; `dots` marks the points, `bounds` are drawn dotted."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    bounds: Sequence[float] = ()


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
        """Round values inside the axis, on a logarithmic one the roundest of which it has two."""
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
) -> str:
    """Draws the lines that have points.

    Args:
        series: the lines.
        x_label: what x counts.
        log_y: a logarithmic y axis, if all values are positive.
        y_range: ends of a linear y axis; None: those of the values.
        whole_x: label whole numbers only, as for steps.
        title: what the chart shows, for those who do not see it.
        level: y of a dashed line, such as what the lines should reach.

    Returns:
        An svg element and its legend; empty if there is no point.
    """
    drawn = [replace(line, points=[p for p in line.points if math.isfinite(p[1])]) for line in series]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    ys = [y for line in drawn for y in (*(y for _, y in line.points), *line.bounds)]
    ys += [] if level is None else [level]
    xs = [x for line in drawn for x, _ in line.points]
    y_axis = _axis(ys, log_y and min(ys) > 0) if y_range is None else _Axis(*y_range)
    x_axis = _Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    parts = [_grid(x_axis, y_axis, x_label, whole_x)]
    parts += [] if level is None else [_level(y_axis, level, "#5d6b7a", "6 4")]
    parts += [_line(line, colour, x_axis, y_axis) for line, colour in zip(drawn, _colours(len(drawn)), strict=True)]
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(line.label)}</span>'
        for line, colour in zip(drawn, _colours(len(drawn)), strict=True)
    )
    name = escape(f"{title or 'chart'} over {x_label}: {', '.join(line.label for line in drawn)}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return f'{svg}<div class="legend">{legend}</div>'


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A running mean over a twentieth of the points, thinned to about 200 points."""
    width = max(1, round(len(points) / 20))
    means = []
    for index in range(len(points)):
        window = [y for _, y in points[max(0, index - width + 1) : index + 1]]
        means.append((points[index][0], sum(window) / len(window)))
    return means[:: max(1, len(means) // 200)]


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
    drawn = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
    return f"{bounds}{drawn}{dots if line.dots else ''}"


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, whole_x: bool) -> str:
    parts = []
    for value in y_axis.ticks():
        y = _y(y_axis, value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in (tick for tick in _with_ends(x_axis) if not whole_x or tick == round(tick)):
        x = _x(x_axis, value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:.4g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>')
    if y_axis.log:
        parts.append(f'<text x="{LEFT}" y="{TOP - 4}">logarithmic</text>')
    return "".join(parts)


def _with_ends(axis: _Axis) -> list[float]:
    """The axis's ticks, its ends among them; what would touch an end gives way."""
    inner = [tick for tick in axis.ticks() if MIN_GAP <= axis.place(tick) <= 1 - MIN_GAP]
    return [axis.low, *inner, axis.high]
