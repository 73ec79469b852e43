"""Runs stages under Prefect: each as a task, with the scores as a table and links between flow run and MLflow run."""

from __future__ import annotations

import os
from collections.abc import Sequence

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.orchestration.cancellation import heeding_cancellation, refuse_cancelled
from flows.orchestration.events import announcing_candidate
from flows.orchestration.server import EMBEDDED_VARIABLE
from flows.planning.readiness import require_ready
from flows.records.commands import run_page
from flows.records.origin import Continuation
from flows.records.session import Outcome, Session, open_session
from magic141.artifacts.references import ArtifactRef
from magic141.tracking.tags import TAG_FIRST, TAG_ORIGIN
from magic141.urls import without_credentials
from tasks.run_stage import run_stage
from tasks.stage import Stage, StageContext


def run_as_tasks(session: Session, stages: Sequence[Stage]) -> Outcome:
    """Runs stages in order, each as a Prefect task; shows the scores in Prefect; announces a new candidate."""
    with announcing_candidate(session.context, stages):
        outcome = session.run_stages(stages, as_task)
    refuse_cancelled()
    if table := session.scores():
        create_table_artifact(key="scores", table=table, description=run_link(outcome.tracking_uri, outcome.run_id))
    return outcome


def as_task(stage: Stage, context: StageContext) -> ArtifactRef:
    """Runs the stage as a Prefect task, without Prefect's caching and retries: stages manage their reuse themselves."""
    refuse_cancelled()

    @task(name=stage.name, cache_policy=NO_CACHE, retries=0)
    def run(context: StageContext) -> State[ArtifactRef]:
        ref = run_stage(stage, context)
        facts = (run_link(context.tracker.uri, ref.run_id), f"artifact `{ref.uri}`", f"digest `{ref.digest}`")
        lines = (f"# {stage.name}", *(f"- {fact}" for fact in facts))
        create_markdown_artifact(key=stage.name.replace("_", "-"), markdown="\n".join(lines))
        return Completed(name="Reused" if stage.name in context.reused else "Completed", data=ref)

    with heeding_cancellation():
        return run(context).result()


def run_link(tracking_uri: str, run_id: str) -> str:
    """Markdown link to a run's page, if a server has one."""
    page = run_page(tracking_uri, run_id)
    return f"MLflow run [{run_id}]({page})" if page else f"MLflow run `{run_id}`"


def carry_on(going_on: Continuation, kind: str, refresh: Sequence[str] = (), overrides: Sequence[str] = ()) -> Outcome:
    """Runs stages on an earlier run's artifacts, under a parent run that names its origin."""
    require_ready(going_on.config, going_on.stages, refresh, going_on.kept)
    tags = {TAG_ORIGIN: going_on.origin.run.info.run_id, **flow_tags()}
    if going_on.kept:
        tags[TAG_FIRST] = going_on.stages[0].name
    with open_session(going_on.config, kind, tags, refresh, overrides) as session:
        for ref in going_on.kept:
            session.context.artifacts[ref.stage] = ref
            session.context.tracker.set_artifact(session.run.run_id, ref, reused=True)
        return run_as_tasks(session, going_on.stages)


def flow_tags() -> dict[str, str]:
    """Tags that link the MLflow run to the flow run in Prefect; without a URL if the server is embedded."""
    url = None if EMBEDDED_VARIABLE in os.environ else flow_run.ui_url
    facts = {"prefect.flow_run_id": flow_run.id, "prefect.flow_run_url": url}
    return {name: without_credentials(str(value)) for name, value in facts.items() if value}
