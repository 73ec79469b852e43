"""The packages and weights that VBench's dimensions need on this machine; nothing is ever downloaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from magic141.environment import installed_version

HOW_TO_INSTALL = "uv pip install --no-deps vbench==0.1.5 decord opencv-python-headless"
NEEDED_MODULES = ("vbench", "decord", "cv2")
DINO = "dino_model/dino_vitbase16_pretrain.pth"
DINO_CODE = "dino_model/facebookresearch_dino_main"
DINO_FILES = (f"{DINO_CODE}/hubconf.py", DINO)
# dimension -> its weight files below $VBENCH_CACHE_DIR, and the modules that it imports besides vbench's own
NEEDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "temporal_flickering": ((), ()),
    "motion_smoothness": (("amt_model/amt-s.pth",), ("omegaconf",)),
    "dynamic_degree": (("raft_model/models/raft-things.pth",), ("easydict",)),
    "i2v_subject": (DINO_FILES, ()),
    "subject_consistency": (DINO_FILES, ()),
    "aesthetic_quality": (
        ("clip_model/ViT-L-14.pt", "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
        ("clip",),
    ),
    "imaging_quality": (("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",), ("pyiqa",)),
    "background_consistency": (("clip_model/ViT-B-32.pt",), ("clip",)),
}


def weights_folder() -> Path:
    """Where VBench looks for weights."""
    return Path(os.environ.get("VBENCH_CACHE_DIR", Path.home() / ".cache" / "vbench")).absolute()


def versions() -> dict[str, str | None]:
    """Versions of the packages behind the scores; None for those that are not installed."""
    return {
        name: installed_version(name)
        for name in ("vbench", "torch", "decord", "opencv-python-headless", "opencv-python")
    }


def what_can_be_scored(requested: Sequence[str]) -> str:
    """The requested dimensions that can be computed here, with VBench's version; changes if more is installed."""
    names = ", ".join(name for name in requested if why_not(name, requested) is None)
    return f"{names or 'nothing'} by vbench {installed_version('vbench') or '(not installed)'}"


def computed_by(text: str) -> dict[str, str]:
    """Dimension -> what computes it, from an answer of `what_can_be_scored`."""
    names, _, version = text.rpartition(" by ")
    return dict.fromkeys((name for name in names.split(", ") if name in NEEDS), version)


def why_not(name: str, requested: Sequence[str]) -> str | None:
    """Why dimension `name` cannot or should not be computed; None if it can."""
    weights, modules = NEEDS[name]
    cache = weights_folder()
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
