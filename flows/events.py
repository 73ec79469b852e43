"""The event that announces a new candidate, which triggers a deployed evaluation (infra/prefect.yaml)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prefect.events import emit_event

from magic141.frozen import FrozenConfig
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
    """Emits the event if the stages run inside publish a new artifact or move the alias to another version.

    A run that reuses everything emits none. If an event cannot be sent, a note is printed and the run goes on.
    """
    if all(stage.name != "publish" for stage in stages):
        yield
        return
    before = _version(context)
    yield
    after = _version(context)
    if after and (after != before or "publish" not in context.reused):
        _emit(context, after)


def _version(context: StageContext) -> str | None:
    publish = context.config.publish
    found = context.tracker.registry.alias_version(publish.model_name, publish.alias)
    return str(found.version) if found else None


def _emit(context: StageContext, version: str) -> None:
    publish = context.config.publish
    candidate = Candidate(
        model=f"models:/{publish.model_name}/{version}",
        alias=publish.alias,
        run_id=context.parent_id,
        workspace=str(context.home),
    )
    resource = {"prefect.resource.id": f"{RESOURCE}.{publish.model_name}", "prefect.resource.name": publish.model_name}
    try:
        emit_event(CANDIDATE, resource, payload=candidate.model_dump())
    except Exception as error:
        context.console.note("publish", f"no event of the new candidate was sent: {type(error).__name__}")
