"""Stage 2: the CLIP model for image retrieval, trained on the corpus or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from magic141.artifacts import digest_source
from magic141.config import PipelineConfig
from tasks.stage import Stage, StageCall


def _run(call: StageCall) -> None:
    from magic141.retrieval.clip import build_clip

    build_clip(call.config.train_clip, call.inputs["prepare_data"], call.out, call.log, call.seed)


def _sources(config: PipelineConfig) -> Mapping[str, str]:
    weights = config.train_clip.pretrained
    if config.train_clip.kind == "train" or weights is None or "/" not in weights:
        return {}
    return {"train_clip.pretrained": digest_source(Path(weights))}


STAGE = Stage(
    name="train_clip",
    modules=("magic141.retrieval.clip",),
    settings=lambda config: {"train_clip": config.train_clip},
    inputs=("prepare_data",),
    sources=_sources,
    run=_run,
    model_type="open_clip",
)
