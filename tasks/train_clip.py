"""Stage 2: the CLIP model for image retrieval, trained on the corpus or loaded."""

from __future__ import annotations

from magic141.config import PipelineConfig
from tasks.stage import Stage, StageCall, sources_in


def _run(call: StageCall) -> None:
    from magic141.retrieval.clip import build_clip

    build_clip(call.config.train_clip, call.inputs["prepare_data"], call.out, call.log, call.seed)


def _check(config: PipelineConfig) -> None:
    clip = config.train_clip
    if clip.kind == "pretrained" and clip.pretrained:
        from magic141.retrieval.pretrained import require_known  # imports open_clip, which takes seconds

        require_known(clip.model, clip.pretrained, clip.release)


STAGE = Stage(
    name="train_clip",
    modules=("magic141.retrieval.clip",),
    settings=lambda config: {"train_clip": config.train_clip},
    inputs=("prepare_data",),
    sources=sources_in("train_clip"),
    run=_run,
    check=_check,
    model_type="open_clip",
)
