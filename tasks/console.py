"""Console output while stages run: a line per stage and a live progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from magic141.artifacts.publication import DIGEST_CHARS

PLAIN_LINE_SECONDS = 15.0
NAME_WIDTH = 13
SHOWN_VALUES = 4
MIN_BAR, MAX_BAR, TERMINAL_PER_BAR = 10, 24, 8  # characters; a narrow terminal needs its room for the figures
# Those that tell most, first; the bar has the speed.
PREFERRED = ("loss", "validation_loss", "validation_motion_ratio", "validation_frechet", "fake_loss", "grad_norm")
SPEED = "steps_per_s"


class StageConsole:
    """Lines and bars on stderr; without a terminal, a bar becomes a plain line every 15 seconds."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._values = ""
        self._known: dict[str, float] = {}

    def line(self, mark: str, stage: str, text: str, style: str = "") -> None:
        """Prints `mark stage  text`; a log file that cannot be written to must not end a training."""
        with suppress(OSError, ValueError):
            self.console.print(f"{mark} {stage:<{NAME_WIDTH}} {text}", style=style, markup=False, soft_wrap=True)

    def started(self, stage: str) -> None:
        """Reports that the stage has begun."""
        self.line("●", stage, "running")

    def finished(self, stage: str, seconds: float, digest: str) -> None:
        """Reports that the stage has made its artifact."""
        self.line("✓", stage, f"{_duration(seconds)}, artifact {digest[:DIGEST_CHARS]}", "green")

    def reused(self, stage: str, run_id: str) -> None:
        """Reports that the stage's artifact is reused."""
        self.line("↺", stage, f"reused from run {run_id}", "cyan")

    def failed(self, stage: str, reason: str) -> None:
        """Reports that the stage did not make its artifact."""
        self.line("✗", stage, reason, "red")

    def note(self, stage: str, text: str) -> None:
        """Prints a note of the stage."""
        self.line("·", stage, text, "dim")

    def values(self, values: Mapping[str, float]) -> None:
        """Sets the newest metrics, shown beside the bar."""
        self._known.update(values)
        first = [name for name in PREFERRED if name in self._known]
        names = first or [name for name in self._known if name != SPEED]
        self._values = "  ".join(f"{name} {self._known[name]:.4g}" for name in names[:SHOWN_VALUES])

    @contextmanager
    def progress(self, stage: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """A bar over `total` units with the newest metrics, speed and time left."""
        self._values = ""
        self._known.clear()
        run = self._live if self.console.is_terminal else self._plain
        with run(stage, total, unit) as advance:
            yield advance

    @contextmanager
    def _live(self, stage: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        columns = (
            TextColumn(f"  {stage:<{NAME_WIDTH}}"),
            BarColumn(bar_width=min(max(MIN_BAR, self.console.width // TERMINAL_PER_BAR), MAX_BAR)),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            _TimeColumn(Column(no_wrap=True)),
            # with `expand`, the only column that gives way: with the others alike, count and time would be cut off
            TextColumn("{task.fields[values]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        )
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=4, expand=True) as bar:
            task: TaskID = bar.add_task(stage, total=total, rate="", left=None, values="")
            meter = _Meter(total)

            def advance(done: int) -> None:
                meter.add(done)
                rate, left = (f"{meter.rate:.2f} {unit}/s", meter.left) if meter.rate > 0 else ("", None)
                bar.update(task, advance=done, rate=rate, left=left, values=self._values)

            yield advance

    @contextmanager
    def _plain(self, stage: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        meter = _Meter(total)
        last = time.monotonic()

        def advance(done: int) -> None:
            nonlocal last
            meter.add(done)
            if time.monotonic() - last < PLAIN_LINE_SECONDS:
                return
            last = time.monotonic()
            speed = f"  {meter.rate:.2f} {unit}/s  {_duration(meter.left)} left" if meter.rate > 0 else ""
            self.line(" ", stage, f"{meter.done}/{total}{speed}  {self._values}".rstrip())

        yield advance


class _TimeColumn(ProgressColumn):
    """The time left; until it is known, the time so far, so that one sees that something goes on."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        seconds, which = (task.elapsed or 0.0, "so far") if left is None else (left, "left")
        return Text(f"{timedelta(seconds=round(seconds))} {which}")


class _Meter:
    """Speed and time left, measured from the first report, which may include steps of an earlier process."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._zero = 0
        self._since = time.monotonic()

    def add(self, done: int) -> None:
        if self.done == 0:
            self._zero, self._since = done, time.monotonic()
        self.done += done

    @property
    def rate(self) -> float:
        return (self.done - self._zero) / max(time.monotonic() - self._since, 1e-6)

    @property
    def left(self) -> float:
        return (self.total - self.done) / self.rate if self.rate > 0 else 0.0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
