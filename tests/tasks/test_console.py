"""Which figures a person sees while something is trained."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from tasks import console as consoles
from tasks.console import StageConsole

# what the demo's distillation logs at its first validation
VALIDATED = {
    "loss": 6.651e-05,
    "fake_loss": 0.4127,
    "grad_norm": 0.01823,
    "steps_per_s": 1.4,
    "validation_motion_ratio": 0.9812,
    "validation_frechet": 1.2345,
}


@pytest.mark.parametrize(
    ("logged", "shown"),
    [
        (
            [{"grad_norm": 2.0, "fake_loss": 0.5, "loss": 1.0, "steps_per_s": 9.0}, {"validation_motion_ratio": 1.1}],
            "loss 1  validation_motion_ratio 1.1  fake_loss 0.5  grad_norm 2",
        ),
        ([{"steps_per_s": 9.0, "recall": 0.5}], "recall 0.5"),
    ],
)
def test_what_tells_most_comes_first_and_the_speed_once(
    logged: list[dict[str, float]], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consoles, "PLAIN_LINE_SECONDS", 0.0)
    console = StageConsole(Console(file=io.StringIO(), width=200))
    with console.progress("train", 2, "step") as advance:
        for values in logged:
            console.values(values)
        advance(1)
    assert isinstance(console.console.file, io.StringIO)
    assert console.console.file.getvalue().rstrip().endswith(shown)
    assert "steps_per_s" not in console.console.file.getvalue()


@pytest.fixture
def at_second(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock by which speed and time left are measured, of a program at a terminal."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(consoles, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return lambda now: setattr(clock, "now", now)


def last_frame(console: StageConsole) -> str:
    """What a terminal shows of a bar at last."""
    assert isinstance(console.console.file, io.StringIO)
    frames = Text.from_ansi(console.console.file.getvalue()).plain.splitlines()
    return [frame for frame in frames if frame.strip()][-1].rstrip()


@pytest.mark.parametrize(
    ("width", "values"),
    [
        (80, "loss 6.651e-05  va…"),
        (100, "loss 6.651e-05  validation_motion_ra…"),
        (120, "loss 6.651e-05  validation_motion_ratio 0.9812  valid…"),
        (200, "loss 6.651e-05  validation_motion_ratio 0.9812  validation_frechet 1.234  fake_loss 0.4127"),
    ],
)
def test_of_a_narrow_terminals_line_only_the_values_are_cut(
    width: int, values: str, at_second: Callable[[float], None]
) -> None:
    console = StageConsole(Console(file=io.StringIO(), width=width, force_terminal=True))
    with console.progress("distill_dmd2", 1200, "step") as advance:
        advance(100)
        at_second(400.0)
        console.values(VALIDATED)
        advance(560)
    frame = last_frame(console)
    assert frame.startswith("  distill_dmd2  ")
    assert frame.endswith(f" 660/1200 1.40 step/s 0:06:26 left {values}")
    assert len(frame) <= width


def test_a_time_is_not_taken_for_another(at_second: Callable[[float], None]) -> None:
    """A first video may take a minute, and nobody knows until then how long the others will."""
    console = StageConsole(Console(file=io.StringIO(), width=80, force_terminal=True))
    with console.progress("generate", 6, "video") as advance:
        pass
    assert re.search(r" 0/6  0:00:\d\d so far$", last_frame(console))
    with console.progress("generate", 6, "video") as advance:
        advance(1)
        at_second(20.0)
        advance(1)
    assert last_frame(console).endswith(" 2/6 0.05 video/s 0:01:20 left")
