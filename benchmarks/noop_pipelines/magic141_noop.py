"""Seven stages by magic141's own machinery: keys, locks, digests, MLflow record, Prefect tasks, embedded server.

python magic141_noop.py WORKSPACE SETTING
"""

from __future__ import annotations

import sys
from pathlib import Path

from noop import NUM_STAGES, work

from flows.command_line.startup import uncollected
from flows.orchestration.server import PrefectServer
from tasks.stage import Stage, StageCall

WORKSPACE, SETTING = Path(sys.argv[1]).resolve(), sys.argv[2]


def make(number: int) -> Stage:
    """A stage; the last one also depends on a setting."""
    before, last = f"stage_{number - 1}", number == NUM_STAGES

    def run(call: StageCall) -> None:
        text = (call.inputs[before] / "text.txt").read_text() if number > 1 else ""
        (call.out / "text.txt").write_text(work(number, text, call.config.report.title if last else ""))

    return Stage(
        name=f"stage_{number}",
        modules=("magic141.frozen",),
        settings=lambda config: {"report": config.report} if last else {},
        run=run,
        inputs=(before,) if number > 1 else (),
    )


def main() -> None:
    """Starts what `magic141 run` starts, and runs the stages."""
    WORKSPACE.mkdir(parents=True, exist_ok=True)
    server = PrefectServer(WORKSPACE)
    with uncollected():
        from flows.command_line.unchanged import first_to_run, run_unchanged
        from magic141.config import PipelineConfig
        from magic141.evaluation.config import ReportConfig

        config = PipelineConfig(name="noop", workspace=WORKSPACE, report=ReportConfig(title=SETTING))
        stages = [make(number) for number in range(1, NUM_STAGES + 1)]
        work = first_to_run(config, stages)
    if work is None:
        server.stop()
        run_unchanged(config, stages)
        return
    from prefect import flow

    from flows.orchestration.orchestrated import flow_tags, run_as_tasks
    from flows.records.session import Outcome, open_session

    @flow(name="noop", retries=0, validate_parameters=False)
    def noop() -> Outcome:
        with open_session(config, "pipeline", flow_tags()) as session:
            return run_as_tasks(session, stages)

    server.wait()
    noop()


if __name__ == "__main__":
    main()
