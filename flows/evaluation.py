"""Only the judging stages, on the artifacts of an earlier run: generate, evaluate, report."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.notify import notify
from flows.orchestrated import carry_on
from flows.origin import continue_run, find_origin
from flows.session import Outcome
from magic141.config import default_home
from magic141.frozen import UserError
from tasks import pipeline as stages_of


@flow(name="magic141-evaluation", retries=0, validate_parameters=False, on_failure=[notify], on_crashed=[notify])
def evaluation(
    workspace: str | None = None,
    run_id: str | None = None,
    model: str | None = None,
    overrides: list[str] | None = None,
) -> Outcome:
    """Judges the models of a run, or of the run behind a registered model.

    Args:
        workspace: where the earlier run lives; none: MAGIC141_HOME, or runs.
        run_id: a pipeline run, or one of its stage runs.
        model: `models:/name@alias` or `models:/name/version`, in place of `run_id`.
        overrides: `generate.*`, `evaluate.*`, `report.*` to judge differently.
    """
    if (run_id is None) == (model is None):
        raise UserError("eval: give either --run ID or --model URI, such as --model models:/magic141@candidate")
    judging = [stage for stage in stages_of.STAGES if stage.name in stages_of.JUDGING]
    origin = find_origin(Path(workspace) if workspace else default_home(), str(run_id or model))
    return carry_on(continue_run(origin, judging, overrides or ()), "evaluation")
