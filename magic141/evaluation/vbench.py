"""The adapter to the real `vbench` package: only what needs no download, everything else with a reason."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from magic141.evaluation.scores import VBENCH, Score

HOW_TO_INSTALL = "uv pip install --no-deps vbench==0.1.5 decord opencv-python-headless"
NEEDED_MODULES = ("vbench", "decord", "cv2")
# dimension -> files of its weights below $VBENCH_CACHE_DIR, modules that it imports beside vbench's own
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "temporal_flickering": ((), ()),
    "motion_smoothness": (("amt_model/amt-s.pth",), ("omegaconf",)),
    "dynamic_degree": (("raft_model/models/raft-things.pth",), ("easydict",)),
    "subject_consistency": (
        ("dino_model/facebookresearch_dino_main/hubconf.py", "dino_model/dino_vitbase16_pretrain.pth"),
        (),
    ),
    "aesthetic_quality": (
        ("clip_model/ViT-L-14.pt", "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
        ("clip",),
    ),
    "imaging_quality": (("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",), ("pyiqa",)),
    "background_consistency": (("clip_model/ViT-B-32.pt",), ("clip",)),
}
NOT_SUPPORTED = {
    "i2v_subject": "belongs to VBench-I2V, whose prompt file and images are not in the vbench package",
    "i2v_background": "belongs to VBench-I2V, whose prompt file and images are not in the vbench package",
}


def versions() -> dict[str, str | None]:
    """Versions of the packages behind the scores; none for those that are not installed."""
    return {name: _version(name) for name in ("vbench", "torch", "decord", "opencv-python-headless", "opencv-python")}


def score_folder(folder: Path, requested: Sequence[str]) -> dict[str, Score]:
    """Scores the mp4 files of `folder` in VBench's mode for custom videos, on CPU, in this process.

    Args:
        folder: holds the videos of one variant.
        requested: dimensions to compute.

    Returns:
        A score for every dimension of Table 1 and every requested one.
    """
    names = dict.fromkeys([dimension.key for dimension in VBENCH] + list(requested))
    reasons = {name: _why_not(name, requested) for name in names}
    computable = [name for name, reason in reasons.items() if reason is None]
    if not any(folder.glob("*.mp4")):
        return {name: Score.missing(reasons[name] or f"no video in {folder.name}") for name in names}
    computed = {name: _compute(folder, name) for name in computable}
    return {name: computed.get(name) or Score.missing(reasons[name] or "not computed") for name in names}


def _why_not(name: str, requested: Sequence[str]) -> str | None:
    """Why dimension `name` cannot or shall not be computed; none if it can."""
    if name in NOT_SUPPORTED:
        return NOT_SUPPORTED[name]
    if name not in NEEDS:
        return f"not a dimension for custom videos that magic141 knows; expected one of {', '.join(NEEDS)}"
    weights, modules = NEEDS[name]
    cache = Path(os.environ.get("VBENCH_CACHE_DIR", Path.home() / ".cache" / "vbench"))
    missing = [file for file in weights if not (cache / file).is_file()]
    if name not in requested:
        needs = f" and put {', '.join(missing)} into $VBENCH_CACHE_DIR" if missing else ""
        return f"not requested: add it to evaluate.vbench_dimensions{needs}"
    absent = [module for module in (*NEEDED_MODULES, *modules) if importlib.util.find_spec(module) is None]
    if absent:
        return f"not installed: {', '.join(absent)}; get it with `{HOW_TO_INSTALL}{_extra_packages(modules)}`"
    if missing:
        return f"weights missing: put {', '.join(missing)} into $VBENCH_CACHE_DIR ({cache.name}); nothing is downloaded"
    return None


def _extra_packages(modules: Sequence[str]) -> str:
    packages = {"clip": "openai-clip"}
    return "".join(f" {packages.get(module, module)}" for module in modules)


def _compute(folder: Path, name: str) -> Score:
    try:
        with tempfile.TemporaryDirectory() as out, _quiet():
            package = importlib.import_module("vbench")
            full_info = Path(str(package.__file__)).parent / "VBench_full_info.json"
            bench = package.VBench(torch.device("cpu"), str(full_info), out)
            bench.evaluate(
                videos_path=str(folder),
                name="custom",
                dimension_list=[name],
                local=True,
                mode="custom_input",
            )
            return _read_result(Path(out) / "custom_eval_results.json", name)
    except Exception as error:  # vbench and its models raise whatever they like; one dimension must not stop the rest
        return Score.missing(
            f"vbench failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )


def _read_result(file: Path, name: str) -> Score:
    value, videos = json.loads(file.read_text())[name]
    per_video = Score.mean([float(video["video_results"]) for video in videos])
    scale = 0.01 if name == "imaging_quality" else 1.0  # its videos are scored 0-100, its aggregate 0-1
    return Score(float(value), stderr=None if per_video.stderr is None else per_video.stderr * scale)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps vbench's prints, progress bars and its logging.basicConfig away from ours."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sink = io.StringIO()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
