"""Adapter to the `vbench` package: computes what needs no download, and gives a reason for everything else."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from magic141.environment import temporary_environment
from magic141.errors import first_line
from magic141.evaluation.scores import VBENCH, Score
from magic141.evaluation.scoring.vbench_needs import DINO, weights_folder, why_not
from magic141.models.device import sampling_device


def score_folder(folder: Path, requested: Sequence[str]) -> dict[str, Score]:
    """Scores the mp4 files of `folder` in VBench's mode for custom videos, in this process; on a GPU if it sees one.

    Args:
        folder: holds the videos of one variant.
        requested: dimensions to compute.

    Returns:
        A score for every dimension of Table 1 and every requested one.
    """
    names = dict.fromkeys([dimension.key for dimension in VBENCH] + list(requested))
    reasons = {name: why_not(name, requested) for name in names}
    if not any(folder.glob("*.mp4")):
        reasons = {name: reason or f"no video in {folder.name}" for name, reason in reasons.items()}
    return {
        name: _compute(folder, name) if reason is None else Score.missing(reason) for name, reason in reasons.items()
    }


def _compute(folder: Path, name: str) -> Score:
    try:
        with tempfile.TemporaryDirectory() as out, _quiet(), _cached_weights(Path(out)):
            package = importlib.import_module("vbench")
            full_info = Path(str(package.__file__)).parent / "VBench_full_info.json"
            bench = package.VBench(sampling_device(), str(full_info), out)
            bench.evaluate(
                videos_path=str(folder),
                name="custom",
                dimension_list=[name],
                local=True,
                mode="custom_input",
            )
            return _read_result(Path(out) / "custom_eval_results.json", name)
    except Exception as error:  # vbench and its models may raise anything; one dimension must not stop the rest
        return Score.missing(f"vbench failed: {type(error).__name__}: {first_line(str(error))}")


def _read_result(file: Path, name: str) -> Score:
    value, videos = json.loads(file.read_text())[name]
    per_video = Score.mean([float(video["video_results"]) for video in videos])
    scale = 0.01 if name == "imaging_quality" else 1.0  # its videos are scored 0-100, its aggregate 0-1
    return Score(float(value), stderr=None if per_video.stderr is None else per_video.stderr * scale)


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
