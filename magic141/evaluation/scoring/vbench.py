"""Adapter to the `vbench` package: computes what needs no download, and gives a reason for everything else."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from magic141.environment import temporary_environment
from magic141.errors import first_line
from magic141.evaluation.scores import AVERAGE, BACKGROUND, TABLE_1, Score
from magic141.evaluation.scoring.vbench_needs import DINO, DINO_CODE, weights_folder, why_not
from magic141.models.device import sampling_device

FAILED = "vbench failed"


def score_folder(folder: Path, requested: Sequence[str]) -> dict[str, Score]:
    """Scores the mp4 files of `folder` in VBench's mode for custom videos, in this process; on a GPU if it sees one.

    Args:
        folder: holds the videos of one variant; beside it `input` holds the pictures, of the same names, that they
            begin with.
        requested: dimensions to compute.

    Returns:
        A score for every dimension, and the average of those in Table 1.
    """
    reasons = {dimension.key: why_not(dimension.key, requested) for dimension in (*TABLE_1, BACKGROUND)}
    if not any(folder.glob("*.mp4")):
        reasons = {name: reason or f"no video in {folder.name}" for name, reason in reasons.items()}
    scores = {
        name: _compute(folder, name) if reason is None else Score.missing(reason) for name, reason in reasons.items()
    }
    return {**scores, AVERAGE.key: _average(scores)}


def _average(scores: Mapping[str, Score]) -> Score:
    """The mean over Table 1's dimensions, if there are all."""
    values = {dimension.key: scores[dimension.key].value for dimension in TABLE_1}
    known = [value for value in values.values() if value is not None]
    if len(known) < len(TABLE_1):
        return Score.missing(f"without {', '.join(name for name, value in values.items() if value is None)}")
    return Score(statistics.fmean(known))


def _compute(folder: Path, name: str) -> Score:
    try:
        with tempfile.TemporaryDirectory() as scratch, _quiet(), _cached_weights(Path(scratch)):
            value, videos = _beside_input(folder) if name == "i2v_subject" else _custom(folder, name, Path(scratch))
    except Exception as error:  # vbench and its models may raise anything; one dimension must not stop the rest
        return Score.missing(f"{FAILED}: {type(error).__name__}: {first_line(str(error))}")
    return _score(name, float(value), [float(video["video_results"]) for video in videos])


def _custom(folder: Path, name: str, scratch: Path) -> tuple[float, list[dict[str, Any]]]:
    """VBench's aggregate and its entry for each video."""
    package = importlib.import_module("vbench")
    full_info = Path(str(package.__file__)).parent / "VBench_full_info.json"
    bench = package.VBench(sampling_device(), str(full_info), str(scratch))
    bench.evaluate(videos_path=str(folder), name="custom", dimension_list=[name], local=True, mode="custom_input")
    value, videos = json.loads((scratch / "custom_eval_results.json").read_text())[name]
    return value, videos


def _beside_input(folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """VBench-I2V's likeness of the subject to the input: its own suite is not in the package, its measure is."""
    package, device = importlib.import_module("vbench2_beta_i2v.i2v_subject"), sampling_device()
    model = torch.hub.load(str(weights_folder() / DINO_CODE), "dino_vitb16", source="local").to(device).eval()
    pictures = folder.parent / "input"
    pairs = [(str(pictures / f"{file.stem}.png"), str(file)) for file in sorted(folder.glob("*.mp4"))]
    value, videos = package.i2v_subject(model, pairs, device)
    return float(value), list(videos)


def _score(name: str, value: float, per_video: Sequence[float]) -> Score:
    """The aggregate with its error; VBench leaves out videos that it cannot read, and says so in no other way."""
    if not math.isfinite(value):
        return Score.missing(f"{FAILED}: it could read none of the videos")
    scale = 0.01 if name == "imaging_quality" else 1.0  # its videos are scored 0-100, its aggregate 0-1
    stderr = Score.mean(per_video).stderr
    return Score(value, stderr=None if stderr is None else stderr * scale)


@contextlib.contextmanager
def _cached_weights(scratch: Path) -> Iterator[None]:
    """Makes VBench 0.1.5 read the weights of its cache only, also those that torch 2.6 and later no longer unpickle.

    It passes on where DINO's are, but DINO's own hubconf.py looks into torch.hub's folder, and downloads them.
    """
    before, checkpoints = torch.hub.get_dir(), scratch / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / Path(DINO).name).symlink_to(weights_folder() / DINO)
    torch.hub.set_dir(scratch)
    try:
        with temporary_environment({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}):
            yield
    finally:
        torch.hub.set_dir(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides vbench's prints and progress bars, and undoes its logging.basicConfig."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
