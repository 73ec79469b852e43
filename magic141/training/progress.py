"""Training progress: worker 0 of a run writes it to progress.jsonl, and the launching process shows and logs it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from magic141.stage_log import StageLog
from magic141.text_files import json_lines, replace_text
from magic141.training.config import METRICS_FILE

FILE = "progress.jsonl"
_HEARTBEAT_S = 1.0
_POLL_S = 0.5
_NOT_METRICS = ("step", "time")
_IMAGES = "images"


class ProgressWriter:
    """Appends one line per logged step, and heartbeats in between; only worker 0 has one.

    Lines beyond the step that training (re)starts from are dropped, so that the file has each step once.
    """

    def __init__(self, run_dir: Path, launch_id: str, start_step: int) -> None:
        self._file = run_dir / FILE
        before = read_rows(self._file) if start_step > 0 else []  # the start, step 0, is logged anew
        kept = [row for row in before if row["step"] <= start_step and "time" in row]
        rows = [*kept, {"step": start_step, "launch": launch_id}]
        replace_text(self._file, json_lines(rows))
        self._last_time, self._last_step = time.time(), start_step
        self._beat = self._last_time

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values` after `step` steps, with the speed since the last logged step."""
        now = time.time()
        speed = (step - self._last_step) / max(now - self._last_time, 1e-9)
        pace = {"steps_per_s": round(speed, 4)} if step > self._last_step else {}  # the start has none
        self._append({"step": step, **values, **pace, "time": round(now, 3)})
        self._last_time, self._last_step = now, step

    def heartbeat(self, step: int) -> None:
        """Record that `step` is done, at most once a second."""
        if step <= 0:  # not a step whose speed counts
            self._last_time, self._last_step = time.time(), step
        if time.time() - self._beat >= _HEARTBEAT_S:
            self._append({"step": step})

    def _append(self, row: dict[str, Any]) -> None:
        self._beat = time.time()
        with self._file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def write_image(run_dir: Path, name: str, step: int, image: NDArray[np.uint8]) -> None:
    """Writes a picture, uint8 [H, W, 3], which the process that follows the run logs; worker 0 only."""
    folder = run_dir / _IMAGES
    folder.mkdir(exist_ok=True)
    aside = folder / f"{name}-{step:06d}.aside"
    Image.fromarray(image).save(aside, format="png")
    aside.replace(aside.with_suffix(".png"))


@contextmanager
def follow(run_dir: Path, launch_id: str, num_steps: int, log: StageLog) -> Iterator[None]:
    """While the block runs, show a progress bar and log the metrics that the workers of `launch_id` write."""
    stop = threading.Event()
    with log.progress(total=num_steps, unit="step") as advance:
        tail = _Tail(run_dir, launch_id, log, advance)
        thread = threading.Thread(target=tail.run, args=(stop,), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The complete lines of a progress file; a line cut off by a kill is left out."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_metrics(run_dir: Path) -> None:
    """Writes metrics.jsonl: the logged steps of the whole run, each once, without wall-clock times."""
    hidden = ("time", "steps_per_s")
    rows = [row for row in read_rows(run_dir / FILE) if "time" in row]
    shown = ({name: value for name, value in row.items() if name not in hidden} for row in rows)
    (run_dir / METRICS_FILE).write_text(json_lines(shown))


class _Tail:
    """Follows the file, even when a restarted worker replaces it, and logs every step once.

    What earlier launches wrote is logged, too, so that the curve of a resumed run begins at step 0.
    """

    def __init__(self, run_dir: Path, launch_id: str, log: StageLog, advance: Callable[[int], None]) -> None:
        self._file, self._images = run_dir / FILE, run_dir / _IMAGES
        self._launch_id, self._log, self._advance = launch_id, log, advance
        self._inode = self._offset = 0
        self._shown, self._logged = 0, -1
        self._earlier: list[dict[str, Any]] | None = []  # rows before this launch's; None once it has begun
        self._seen: set[Path] = set()

    def run(self, stop: threading.Event) -> None:
        """Poll until told to stop, then read the rest."""
        while not stop.wait(_POLL_S):
            try:
                self._poll()
            except Exception:  # any error of the store: it may be back at the next poll, and training goes on
                self._offset = 0  # read all again: steps that were logged are skipped
        self._poll_at_last()

    def _poll_at_last(self) -> None:
        """Polls once more; an error of the store must not discard the finished training."""
        try:
            self._poll()
        except Exception as error:
            self._log.note(f"the last metrics or pictures did not reach the store: {error}")

    def _poll(self) -> None:
        for row in self._new_rows():
            if self._earlier is not None and row.get("launch") != self._launch_id:
                self._earlier.append(row)
                continue
            if self._earlier is not None:
                self._begin(self._earlier, row["step"])
            self._take(row)
        if self._earlier is None:
            self._show_images()

    def _begin(self, earlier: Sequence[dict[str, Any]], first_step: int) -> None:
        """Once a launch, however often the file is read: logs what came before it."""
        for row in earlier:
            self._log_metrics(row)
        self._earlier = None
        if first_step < 0:
            self._log.note(f"preparatory steps, which come first and are not counted: {-first_step}")

    def _take(self, row: dict[str, Any]) -> None:
        step = row["step"]
        if step > self._shown:
            self._advance(step - self._shown)
            self._shown = step
        self._log_metrics(row)

    def _log_metrics(self, row: dict[str, Any]) -> None:
        step = row["step"]
        if "time" in row and step > self._logged:
            self._log.metrics({name: value for name, value in row.items() if name not in _NOT_METRICS}, step)
            self._logged = step

    def _show_images(self) -> None:
        for file in sorted(self._images.glob("*.png")):
            if file not in self._seen:
                name, _, step = file.stem.rpartition("-")
                self._log.image(name, np.asarray(Image.open(file)), int(step))
                self._seen.add(file)

    def _new_rows(self) -> Iterator[dict[str, Any]]:
        if not self._file.exists():
            return
        with self._file.open("rb") as stream:
            inode = os.fstat(stream.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._offset = inode, 0
                if self._earlier:
                    self._earlier.clear()
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                yield json.loads(line)
