"""Stage 1: clips to latents and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from magic141.artifacts import digest_source
from magic141.config import PipelineConfig
from tasks.stage import Stage, StageCall


def _run(call: StageCall) -> None:
    from magic141.data.prepare import prepare_dataset

    prepare_dataset(call.config.data, call.out, call.log, call.seed)


def _sources(config: PipelineConfig) -> Mapping[str, str]:
    data = config.data
    paths = {
        "data.path": data.path if data.source == "folder" else None,
        "data.codec.path": data.codec.path if data.codec.kind == "hunyuan" else None,
        "data.encoder.path": data.encoder.path if data.encoder.kind == "hunyuan" else None,
    }
    return {name: digest_source(Path(path)) for name, path in paths.items() if path is not None}


STAGE = Stage(
    name="prepare_data",
    modules=("magic141.data.prepare",),
    settings=lambda config: {"data": config.data},
    sources=_sources,
    run=_run,
)
