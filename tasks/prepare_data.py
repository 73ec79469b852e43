"""Stage 1: turns clips into latents and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from magic141.artifacts import ArtifactRef, digest_source
from magic141.config import PipelineConfig
from magic141.config_checks import TRAINING_SECTIONS, oversized_batches
from magic141.frozen import UserError
from tasks.stage import Stage, StageCall, StageContext


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


def _require_batches(context: StageContext, ref: ArtifactRef) -> None:
    """Refuses batches larger than the corpus as soon as its clips are counted, before any training starts.

    Raises:
        UserError: with a line for each.
    """
    from magic141.data.dataset import load_info

    num_train = load_info(ref.path).num_clips["train"]
    why = (
        f"the data has only {num_train} training clips; use a batch of at most {num_train}, more or longer videos, or "
        "a smaller data.stride_frames"
    )
    if lines := list(oversized_batches(context.config, TRAINING_SECTIONS, num_train, why)):
        raise UserError("\n".join(lines))


STAGE = Stage(
    name="prepare_data",
    modules=("magic141.data.prepare",),
    settings=lambda config: {"data": config.data},
    sources=_sources,
    run=_run,
    on_ready=_require_batches,
)
