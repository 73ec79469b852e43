"""Short DMD2 students on the teachers of a finished run, several beside each other, one core each."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from magic141.config import PipelineConfig
from magic141.stage_log import NullLog
from magic141.training.config import PlacementConfig
from magic141.training.dmd2.config import Dmd2Config
from magic141.training.dmd2.spec import Dmd2Spec
from magic141.training.train import train
from tasks.distill_dmd2 import STAGE

NUM_UPDATES = 100
ONE_CORE = PlacementConfig(engine="plain", launcher="local", num_workers=1, threads_per_worker=1)
SHORT: dict[str, Any] = {
    "num_steps": NUM_UPDATES,
    "batch_size": 8,
    "validate_every_steps": 25,
    "keep": "last",
    "placement": ONE_CORE,
}


@dataclass(frozen=True)
class Student:
    """A distillation to be run: its config, the models it starts from, and where its artifact belongs."""

    spec: Dmd2Spec
    seed: int
    home: Path

    @property
    def folder(self) -> Path:
        """Named by all that decides the result: code, config, models (whose names are digests too), seed."""
        spec = self.spec
        models = [spec.teacher.parent.name, spec.cfg_distilled.parent.name]
        content = [STAGE.code(), spec.config.model_dump(mode="json"), *models, self.seed]
        return self.home / "students" / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def course(self) -> Course:
        """What became of it."""
        watched = json.loads((self.folder / "watch.json").read_text())
        record = json.loads((self.folder / "training.json").read_text())
        return Course(watched["validations"], bool(watched["collapsed"]), record["cpu_seconds"])


@dataclass(frozen=True)
class Course:
    """The looks that the collapse watch took at a student, whether it saw a collapse, and CPU seconds in all."""

    validations: Sequence[dict[str, Any]]
    collapsed: bool
    cpu_s: float

    def last(self, figure: str) -> float:
        """A figure of the last look, `frechet`, `motion_ratio` and so on."""
        return float(self.validations[-1][f"validation_{figure}"])

    def curve(self, figure: str) -> dict[float, float]:
        """Updates -> a figure."""
        return {float(look["step"]): float(look[f"validation_{figure}"]) for look in self.validations}


def short(config: PipelineConfig, changes: dict[str, Any], rate: float = 1.0) -> Dmd2Config:
    """The config's distillation, `NUM_UPDATES` long with a warm-up as much shorter; a collapse does not stop it."""
    dmd2 = config.distill_dmd2
    warmup = dmd2.optimizer.warmup_steps * NUM_UPDATES // dmd2.num_steps
    optimizer = {"learning_rate": dmd2.optimizer.learning_rate * rate, "warmup_steps": warmup}
    sections = {
        "optimizer": dmd2.optimizer.model_copy(update=optimizer),
        "collapse": dmd2.collapse.model_copy(update={"stop": False}),
    }
    return Dmd2Config.model_validate(dict(dmd2) | SHORT | sections | changes)


def train_students(students: Sequence[Student]) -> None:
    """Trains those that are not there yet, as many at a time as there are cores."""
    missing = {student.folder: student for student in students if not student.folder.is_dir()}
    if not missing:
        return
    start = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        running = [pool.submit(_train, student) for student in missing.values()]
        for number, done in enumerate(as_completed(running), 1):
            done.result()
            print(f"{time.perf_counter() - start:6.0f} s  {number} of {len(running)} students trained", flush=True)


def _train(student: Student) -> None:
    """One student; its folder appears when it is complete, and a stopped one goes on from its checkpoint."""
    folder, spec = student.folder, student.spec
    aside, work = folder.with_name(f".{folder.name}"), folder.with_name(f".{folder.name}-run")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    train(spec, spec.config, spec.data, aside, NullLog(), student.seed, work)
    aside.rename(folder)
    shutil.rmtree(work)
