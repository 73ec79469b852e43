"""`magic141`: run, plan, eval, generate, doctor. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flows.session import Outcome
    from magic141.config import PipelineConfig

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130

app = typer.Typer(
    name="magic141",
    help="Train, distil, quantise, judge and publish an image-to-video model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[Path, typer.Argument(help="YAML config, such as configs/demo.yaml")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="SECTION.FIELD=VALUE; may be repeated")]
Until = Annotated[str | None, typer.Option(help="last stage to run")]
Refresh = Annotated[list[str] | None, typer.Option(help="stage to compute again; may be repeated")]
Workspace = Annotated[Path | None, typer.Option(help="folder of runs (default: MAGIC141_HOME, or runs)")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks and Prefect's log")]


@app.command()
def run(
    config: ConfigFile,
    set_: Overrides = None,
    until: Until = None,
    refresh: Refresh = None,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Run a config's stages; whatever is already there is reused."""
    with _reporting(debug):
        from tasks.pipeline import known_stage

        values = _load(config, set_, workspace)
        for stage, option in [(until, "--until"), *((name, "--refresh") for name in refresh or ())]:
            if stage:
                known_stage(stage, option)
        with _resumable(), _prefect(values.home, debug):
            from flows.pipeline import pipeline

            outcome = pipeline(str(config.resolve()), set_ or [], until, refresh or [])
        _say_outcome(outcome)


@app.command()
def plan(
    config: ConfigFile,
    set_: Overrides = None,
    until: Until = None,
    refresh: Refresh = None,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Show which stages would be reused, which would run, and why."""
    with _reporting(debug):
        from rich.console import Console

        from flows.plan import as_table, make_plan
        from tasks.pipeline import known_stage, stages_until

        values = _load(config, set_, workspace, must_exist=False)
        again = [known_stage(name, "--refresh") for name in refresh or ()]
        Console().print(as_table(list(make_plan(values, stages_until(until), again))))


@app.command(name="eval")
def evaluate(
    run_id: Annotated[str | None, typer.Option("--run", help="MLflow run id of a pipeline run")] = None,
    model: Annotated[str | None, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION")] = None,
    set_: Overrides = None,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Generate, evaluate and report again, on the models of an earlier run."""
    with _reporting(debug):
        home = _store(workspace)
        with _prefect(home, debug):
            from flows.evaluation import evaluation

            outcome = evaluation(str(home), run_id, model, set_ or [])
        _say_outcome(outcome)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS, a run id, or a folder")],
    image: Annotated[Path, typer.Option(help="first frame")],
    prompt: Annotated[str, typer.Option(help="what happens")],
    output: Annotated[Path, typer.Option("--output", "-o", help="video to write")],
    seconds: Annotated[float | None, typer.Option(min=0.1, help="length; default: one window")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the noise")] = 0,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Animate an image with a published model."""
    with _reporting(debug):
        from flows.generation import animate

        made = animate(_store(workspace), model, image, prompt, output, seconds, seed, warn=_warn)
        typer.echo(f"{output}: {made}")


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="ids of two or more runs")],
    variant: Annotated[str, typer.Option(help="row of the score table")] = "student_4",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write, with videos")] = None,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Show runs beside each other: scores with differences, config fields that differ, videos of the same clips."""
    with _reporting(debug):
        from rich.console import Console

        from flows.comparison import compare as compared

        for table in compared(_store(workspace), runs, variant, output):
            if table.row_count:
                Console().print(table, "")
        if output:
            typer.echo(f"page  {output}")


@app.command()
def promote(
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION")
    ] = "models:/magic141@candidate",
    set_: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="promote in spite of the gate")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="back to the champion before the last promotion")
    ] = False,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Make a published model the champion if the gate of its config holds (publish.gate)."""
    with _reporting(debug):
        from flows import promotion

        if rollback:
            uri, version = promotion.rollback(_store(workspace), model, set_ or [])
            typer.echo(f"{uri} is version {version} again")
            return
        decision = promotion.promote(_store(workspace), model, set_ or [], force)
        for verdict in decision.verdicts:
            typer.echo(f"{'✓' if verdict.holds else '✗'} {verdict.what:<32} {verdict.why}")
        if not decision.promoted:
            typer.secho(f"not promoted: {decision.champion} stays where it is; --force moves it", fg="red", err=True)
            raise typer.Exit(FAILURE)
        typer.echo(f"{decision.champion} is version {decision.version}")


@app.command()
def doctor(workspace: Workspace = None, debug: Debug = False) -> None:
    """Say what is installed, on which device, what is missing and how to get it."""
    with _reporting(debug):
        from flows.doctor import examine

        findings = []
        for finding in examine(_home(workspace)):
            findings.append(finding)
            typer.echo(f"{'✓' if finding.ok else '✗'} {finding.name:<20} {finding.state}")
            if finding.remedy:
                typer.echo(f"  → {finding.remedy}")
        if not all(finding.ok for finding in findings):
            raise typer.Exit(FAILURE)


def main() -> None:
    """Entry point."""
    app()


def _load(config: Path, overrides: list[str] | None, workspace: Path | None, must_exist: bool = True) -> PipelineConfig:
    from magic141.config import load_config, missing_sources
    from magic141.frozen import UserError

    values = load_config(config, overrides or [])
    _store(workspace)
    problems = list(missing_sources(values)) if must_exist else []
    if problems:
        raise UserError("\n".join(problems))
    return values


def _store(workspace: Path | None) -> Path:
    """The workspace, once the servers that it stands for have answered."""
    from flows.reach import require_servers

    require_servers()
    return _home(workspace)


def _home(workspace: Path | None) -> Path:
    """The workspace; one given on the command line is what everything in this process uses."""
    if workspace:
        os.environ["MAGIC141_HOME"] = str(workspace.resolve())
    from magic141.config import PipelineConfig

    return PipelineConfig.model_construct(workspace=Path("runs")).home


@contextmanager
def _prefect(home: Path, debug: bool) -> Iterator[None]:
    """Prefect's server starts while the rest is imported."""
    from flows.server import PrefectServer

    if debug:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "DEBUG"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    home.mkdir(parents=True, exist_ok=True)
    server = PrefectServer(home)
    import prefect  # noqa: F401  (seconds of imports, while the server starts in its own process)

    import magic141.tracking  # noqa: F401

    server.wait()
    yield


@contextmanager
def _resumable() -> Iterator[None]:
    """A run that does not finish says how to go on."""
    try:
        yield
    except BaseException:
        command = shlex.join(["magic141", *sys.argv[1:]])
        typer.echo(f"finished stages are kept; to resume: {command}", err=True)
        raise


@contextmanager
def _reporting(debug: bool) -> Iterator[None]:
    """User errors: their line and exit code 2. Other failures: one line and 1. Tracebacks only with --debug."""
    from magic141.frozen import UserError

    try:
        yield
    except UserError as error:
        if debug:
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(USER_ERROR) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        typer.secho(f"failed: {type(error).__name__}: {error}", fg="red", err=True)
        typer.echo("the traceback is error.txt of the stage's MLflow run, and shown with --debug", err=True)
        raise typer.Exit(FAILURE) from None


def _warn(text: str) -> None:
    typer.secho(f"note: {text}", fg="yellow", err=True)


def _say_outcome(outcome: Outcome) -> None:
    if outcome.report:
        typer.echo(f"report  {outcome.report}")
    typer.echo(f"mlflow  run {outcome.run_id}; mlflow ui --backend-store-uri {outcome.tracking_uri}")
    reused = f", {len(outcome.reused)} stages reused" if outcome.reused else ""
    typer.echo(f"done    in {outcome.seconds:.1f} s{reused}")
