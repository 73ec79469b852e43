"""Stage 1: turns clips into latents and embeddings."""

from __future__ import annotations

from magic141.artifacts.references import ArtifactRef
from magic141.config.checks import TRAINING_SECTIONS, oversized_batches
from magic141.data.info import ORIGINS_FILE, load_info
from magic141.data.sources.listing import corpus_files
from magic141.errors import UserError
from tasks.stage import Stage, StageCall, StageContext, sources_in


def _run(call: StageCall) -> None:
    from magic141.data.earlier import Earlier
    from magic141.data.prepare import prepare_dataset

    earlier = Earlier(call.earlier, call.code)
    prepare_dataset(call.config.data, call.out, call.log, call.seed, call.run_dir, earlier)


def _require_batches(context: StageContext, ref: ArtifactRef) -> None:
    """Refuses batches larger than the corpus as soon as its clips are counted, before any training starts.

    Raises:
        UserError: with a line for each.
    """
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
    sources=sources_in("data", {"data.path": corpus_files}),
    is_random=lambda config: config.data.is_random,
    volatile=(ORIGINS_FILE,),
    run=_run,
    on_ready=_require_batches,
    section_name="data",
)
