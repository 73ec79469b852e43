"""Stage 12: exports the student as a folder for diffusers and MLflow, and registers it with an alias."""

from __future__ import annotations

from magic141.artifacts.references import ArtifactRef
from magic141.serving.config import Limits
from tasks.generate import student_sampling
from tasks.stage import Stage, StageCall, StageContext

PYFUNC_LOADER = "magic141.serving.pyfunc"


def _run(call: StageCall) -> None:
    import torch

    from magic141.export import export_pipeline
    from magic141.tracking.model_folder import write_model_files

    config = call.config
    data, student = call.inputs["prepare_data"], call.inputs["distill_dmd2"]
    carried = config.generate.long_video_carried
    dtype = getattr(torch, config.publish.dtype)
    export_pipeline(config.model, config.distill_dmd2, carried, data, student, call.out, call.log, dtype)
    write_model_files(call.out, PYFUNC_LOADER, Limits().model_dump())


def _register(context: StageContext, ref: ArtifactRef) -> None:
    from magic141.tracking import TAG_PUBLISHER

    publish = context.config.publish
    tags = {TAG_PUBLISHER: context.parent_id, "student": context.artifacts["distill_dmd2"].digest}
    version = context.tracker.registry.register(publish.model_name, ref, publish.alias, tags)
    uri = f"models:/{publish.model_name}@{publish.alias}"
    context.console.note("publish", f"{uri} is version {version}")


STAGE = Stage(
    name="publish",
    modules=("magic141.export", "magic141.tracking.model_folder"),
    settings=lambda config: {
        "model": config.model,
        "limits": Limits(),
        "long_video_carried": config.generate.long_video_carried,
        "publish.dtype": config.publish.dtype,
        **student_sampling(config),
    },
    inputs=("prepare_data", "distill_dmd2"),
    run=_run,
    volatile=("registered_model_meta",),  # MLflow writes it into a folder that it loads by a registered name
    model_type="diffusers",
    on_ready=_register,
)
