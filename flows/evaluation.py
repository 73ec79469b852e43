"""`magic141 eval`: runs generate, evaluate and report again on the models of an earlier run."""

from __future__ import annotations

from pathlib import Path

from prefect.states import Completed

from flows.failures.reach import require_servers
from flows.orchestration.flows import our_flow
from flows.orchestration.orchestrated import carry_on
from flows.records.origin import continue_run, find_origin, one_of
from flows.records.session import Outcome
from magic141.config import default_home, working_in, workspace_folder
from magic141.tracking import open_store, parse_uri, store_exists
from magic141.tracking.tags import EVALUATION
from tasks.pipeline import judging_stages


@our_flow("magic141-evaluation")
def evaluation(
    workspace: str | None = None,
    run_id: str | None = None,
    model: str | None = None,
    overrides: list[str] | None = None,
    if_there: bool = False,
) -> Outcome:
    """Judges the models of a run, or of the run behind a registered model.

    Args:
        workspace: folder of the earlier run; None: MAGIC141_HOME, or runs.
        run_id: a pipeline run, or one of its stage runs.
        model: `models:/name@alias` or `models:/name/version`, instead of `run_id`.
        overrides: settings `generate.*`, `evaluate.*`, `report.*` to judge differently.
        if_there: skip instead of failing if `model` does not exist yet, as for a schedule without a champion so far.
    """
    source = one_of(run_id, model)
    home = workspace_folder(workspace) if workspace else default_home()
    with working_in(home):  # a worker's own MAGIC141_HOME may differ
        if if_there and model and not _is_there(home, model):
            return Completed(name="Skipped", message=f"{model} names nothing yet")  # type: ignore[return-value]
        origin = find_origin(home, source)
        going_on = continue_run(origin, judging_stages(), overrides or ())
        return carry_on(going_on, EVALUATION, overrides=overrides or ())


def _is_there(home: Path, model: str) -> bool:
    """Whether an alias points at a version; a version number is assumed to exist."""
    name, alias, _ = parse_uri(model)
    if alias is None:
        return True
    require_servers()
    return store_exists(home) and open_store(home).registry.alias_version(name, alias) is not None
