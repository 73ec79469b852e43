"""The event that announces a new candidate, which triggers a deployed evaluation (infra/prefect.yaml)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prefect.events import emit_event

from flows.orchestration.server import EMBEDDED_VARIABLE
from magic141.frozen import FrozenConfig
from magic141.tracking import TAG_ANNOUNCED, ModelVersion
from tasks.stage import Stage, StageContext

CANDIDATE = "magic141.candidate"
RESOURCE = "magic141.model"


class Candidate(FrozenConfig):
    """The event's payload: enough to judge the candidate without looking anything up.

    Attributes:
        model: `models:/name/version`; not the alias, which may move on.
        alias: alias that points at it now.
        run_id: MLflow run of the pipeline.
        workspace: absolute path of the folder that holds the run's artifacts.
    """

    model: str
    alias: str
    run_id: str
    workspace: str


@contextmanager
def announcing_candidate(context: StageContext, stages: Sequence[Stage]) -> Iterator[None]:
    """Emits the event if the stages run inside publish a version that was not announced, or move the alias to theirs.

    So a run that reuses everything emits none, unless an earlier one ended between its registration and its event. If
    an event cannot be sent, a note is printed and the run goes on.
    """
    if all(stage.name != "publish" for stage in stages):
        yield
        return
    before = _version(context)
    yield
    after = _version(context)
    if after is None or after.run_id != context.artifacts["publish"].run_id:  # another run's, which announces it
        return
    if before is None or after.version != before.version or TAG_ANNOUNCED not in after.tags:
        _emit(context, after)


def _version(context: StageContext) -> ModelVersion | None:
    publish = context.config.publish
    return context.tracker.registry.alias_version(publish.model_name, publish.alias)


def _emit(context: StageContext, version: ModelVersion) -> None:
    publish = context.config.publish
    candidate = Candidate(
        model=f"models:/{publish.model_name}/{version.version}",
        alias=publish.alias,
        run_id=context.parent_id,
        workspace=str(context.home),
    )
    resource = {"prefect.resource.id": f"{RESOURCE}.{publish.model_name}", "prefect.resource.name": publish.model_name}
    try:
        emit_event(CANDIDATE, resource, payload=candidate.model_dump())
    except Exception as error:
        context.console.note("publish", f"no event of the new candidate was sent: {type(error).__name__}")
        return
    if EMBEDDED_VARIABLE not in os.environ:  # to which nobody listens: a run with a real server announces it
        context.tracker.registry.note(version, TAG_ANNOUNCED, context.parent_id)
