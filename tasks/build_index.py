"""Stage 3: the FAISS index of the corpus's images."""

from __future__ import annotations

from tasks.stage import Stage, StageCall


def _run(call: StageCall) -> None:
    from magic141.retrieval.index import build_index

    data, clip = call.inputs["prepare_data"], call.inputs["train_clip"]
    build_index(call.config.build_index, data, clip, call.out, call.log, call.seed)


STAGE = Stage(
    name="build_index",
    modules=("magic141.retrieval.index",),
    settings=lambda config: {"build_index": config.build_index},
    inputs=("prepare_data", "train_clip"),
    run=_run,
)
