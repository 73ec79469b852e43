from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from magic141.stage_log import NullLog
from magic141.text_files import read_json_lines
from magic141.training.config import METRICS_FILE
from magic141.training.progress import FILE, ProgressWriter, follow, read_rows, write_image, write_metrics
from tests.waiting import wait_for


class CountingLog(NullLog):
    def __init__(self) -> None:
        self.done = 0
        self.logged: list[tuple[int, float]] = []
        self.pictures: list[tuple[str, int, np.ndarray[Any, Any]]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def image(self, key: str, image: np.ndarray[Any, Any], step: int = 0) -> None:
        self.pictures.append((key, step, image))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.logged.append((step, values["loss"]))

    def progress(self, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(self._advance)

    def _advance(self, more: int) -> None:
        self.done += more


def test_a_restarted_worker_repeats_nothing(tmp_path: Path) -> None:
    log = CountingLog()
    with follow(tmp_path, "run", 10, log):
        first = ProgressWriter(tmp_path, "run", 0)
        first.metrics(2, {"loss": 0.5})
        first.metrics(4, {"loss": 0.4})
        time.sleep(0.7)  # let the follower read them
        second = ProgressWriter(tmp_path, "run", 2)
        second.metrics(4, {"loss": 0.4})
        second.metrics(10, {"loss": 0.1})
    assert log.logged == [(2, 0.5), (4, 0.4), (10, 0.1)]
    assert log.done == 10
    write_metrics(tmp_path)
    assert read_json_lines(tmp_path / METRICS_FILE) == [
        {"step": 2, "loss": 0.5},
        {"step": 4, "loss": 0.4},
        {"step": 10, "loss": 0.1},
    ]


def test_the_curve_of_a_resumed_run_begins_with_what_earlier_launches_logged(tmp_path: Path) -> None:
    ProgressWriter(tmp_path, "first", 0).metrics(5, {"loss": 0.5})
    log = CountingLog()
    with follow(tmp_path, "second", 10, log):
        ProgressWriter(tmp_path, "second", 5).metrics(10, {"loss": 0.1})
    assert log.logged == [(5, 0.5), (10, 0.1)]
    assert log.done == 10


def test_a_run_that_begins_again_logs_its_start_once(tmp_path: Path) -> None:
    for launch in ("first", "second"):
        ProgressWriter(tmp_path, launch, 0).metrics(0, {"loss": 0.9})
    write_metrics(tmp_path)
    assert read_json_lines(tmp_path / METRICS_FILE) == [{"step": 0, "loss": 0.9}]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    ProgressWriter(tmp_path, "first", 0).metrics(5, {"loss": 0.5})
    with (tmp_path / FILE).open("a") as stream:
        stream.write('{"step": 6, "lo')
    ProgressWriter(tmp_path, "second", 5).metrics(6, {"loss": 0.4})
    assert [row["step"] for row in read_rows(tmp_path / FILE) if "loss" in row] == [5, 6]


def test_pictures_that_a_worker_leaves_are_logged_once(tmp_path: Path) -> None:
    log = CountingLog()
    with follow(tmp_path, "run", 10, log):
        ProgressWriter(tmp_path, "run", 0)
        write_image(tmp_path, "sheet", 4, np.full((2, 3, 3), 7, np.uint8))
        time.sleep(0.7)
    (name, step, picture), *more = log.pictures
    assert (name, step, picture.shape, more) == ("sheet", 4, (2, 3, 3), [])


class BusyStore(CountingLog):
    """Takes every other request."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def _answer(self) -> None:
        self.asked += 1
        if self.asked % 2:
            raise ConnectionError("busy")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._answer()
        super().metrics(values, step)

    def image(self, key: str, image: np.ndarray[Any, Any], step: int = 0) -> None:
        self._answer()
        super().image(key, image, step)


class Refusing(CountingLog):
    """Takes no pictures."""

    asked = False

    def image(self, key: str, image: np.ndarray[Any, Any], step: int = 0) -> None:
        self.asked = True
        raise PermissionError(13, "Permission denied")


def test_a_note_is_made_once_however_often_a_picture_is_refused(tmp_path: Path) -> None:
    log = Refusing()
    with follow(tmp_path, "run", 3, log):
        writer = ProgressWriter(tmp_path, "run", -4)
        write_image(tmp_path, "clips", 3, np.zeros((2, 2, 3), np.uint8))
        for step in (1, 2, 3):
            writer.metrics(step, {"loss": 1.0 / step})
            time.sleep(0.7)
    assert log.asked
    assert [note for note in log.notes if "preparatory" in note] == [
        "preparatory steps, which come first and are not counted: 4"
    ]
    assert [step for step, _ in log.logged] == [1, 2, 3]


def test_a_store_that_is_busy_for_a_while_gets_everything_once(tmp_path: Path) -> None:
    log = BusyStore()
    with follow(tmp_path, "run", 3, log):
        writer = ProgressWriter(tmp_path, "run", 0)
        for step in (1, 2, 3):
            writer.metrics(step, {"loss": 1.0 / step})
        write_image(tmp_path, "clips", 3, np.zeros((2, 2, 3), np.uint8))
        wait_for(lambda: log.pictures)
    assert [step for step, _ in log.logged] == [1, 2, 3]
    assert [(key, step) for key, step, _ in log.pictures] == [("clips", 3)]
    assert log.done == 3
