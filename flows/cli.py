"""The command line `magic141`; every command imports what it needs, so that it starts fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.command_line.endings import reporting, resumable
from flows.command_line.options import ConfigFile, Debug, From, Origin, Overrides, Refresh, Until, Version, Workspace
from flows.command_line.outcomes import (
    say_cleaning,
    say_comparison,
    say_decision,
    say_deletion,
    say_findings,
    say_outcome,
    say_sweep,
    warn,
    wide_console,
)
from flows.command_line.selection import (
    checked_home,
    prefect_server,
    refuse_second_workspace,
    require_origin,
    run_selected,
    selection,
    use_workspace,
)
from flows.command_line.startup import uncollected
from flows.failures.servers import RAY, SERVERS, STORE

app = typer.Typer(
    name="magic141",
    help="Train, distil, quantise, judge and publish an image-to-video model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120, "color": False if os.environ.get("NO_COLOR") else None},
)


@app.callback()
def options(version: Version = False) -> None:
    """Options without a command; each ends the program itself."""


@app.command(short_help="Run a config's stages; existing results are reused.")
def run(
    config: ConfigFile = None,
    set_: Overrides = None,
    origin: Origin = None,
    first: From = None,
    until: Until = None,
    refresh: Refresh = None,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Run a config's stages, or an earlier run's from a stage on; existing results are reused."""
    with reporting(debug):
        chosen = selection(config, origin, first, until, refresh, set_, workspace)
        with resumable():
            outcome = run_selected(chosen, debug)
        say_outcome(outcome, chosen.home)


@app.command(short_help="Show which stages would run and why, on what, how long.")
def plan(
    config: ConfigFile = None,
    set_: Overrides = None,
    origin: Origin = None,
    first: From = None,
    until: Until = None,
    refresh: Refresh = None,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, one object per stage")] = False,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Show which stages would be reused, which would run and why, with what resources and for about how long."""
    with reporting(debug), uncollected():
        chosen = selection(config, origin, first, until, refresh, set_, workspace, must_exist=False)
        from flows.failures.writable import require_workspace
        from flows.planning import plan as planning

        require_workspace(chosen.home)
        rows = list(
            planning.plan_of(chosen.home, chosen.values, origin, first, until, chosen.refresh, chosen.overrides)
        )
        if as_json:
            typer.echo(planning.as_json(rows))
            return
        wide_console().print(planning.as_table(rows))
        if together := planning.total(rows):
            typer.echo(together)
        if lacking := [row.lacking for row in rows if row.lacking]:
            others = f"; the same for {len(lacking) - 1} more" if lacking[1:] else ""
            warn(f"run would refuse: {lacking[0]}{others}")


@app.command(short_help="Run a config once per combination of values.")
def sweep(
    config: Annotated[Path, typer.Argument(help="YAML config, such as configs/demo.yaml")],
    vary: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE,…", help="a value per run; several fields make a grid")
    ] = None,
    member: Annotated[list[str] | None, typer.Option(metavar="'FIELD=VALUE …'", help="one run of the sweep")] = None,
    variant: Annotated[str | None, typer.Option(help="row of the score table to compare, else the student's")] = None,
    set_: Overrides = None,
    until: Annotated[str, typer.Option(help="last stage to run; with publish each becomes the candidate")] = "report",
    parallel: Annotated[int, typer.Option(min=1, help="members run at once, each in its own process")] = 1,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Run a config once per combination of values; stages that combinations share are computed once."""
    with reporting(debug):
        from flows.planning.grid import check_members, members_of, row_to_compare

        refuse_second_workspace(set_, workspace)
        checked_home(workspace, SERVERS)
        members = check_members(config, members_of(vary or (), member or ()), set_ or ())
        row_to_compare(variant, until, members)
        with resumable(), prefect_server(members[0].config.home, debug):
            from flows.sweep import SweepFailed
            from flows.sweep import sweep as swept

            try:
                outcome = swept(str(config.resolve()), vary, member, set_, until, variant, parallel)
            except SweepFailed as failed:
                say_sweep(failed.outcome)
                raise
        say_sweep(outcome)


@app.command(name="eval", short_help="Judge an earlier run's models again; train nothing.")
def evaluate(
    run_id: Annotated[
        str | None, typer.Option("--run", help="MLflow run id of a pipeline run; this or --model")
    ] = None,
    model: Annotated[str | None, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION; this or --run")] = None,
    set_: Overrides = None,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Generate, evaluate and report again with the models of an earlier run."""
    with reporting(debug):
        from flows.records.origin import one_of
        from tasks.pipeline import judging_stages

        home = checked_home(workspace, SERVERS)
        require_origin(home, one_of(run_id, model), judging_stages(), set_ or ())
        with resumable(), prefect_server(home, debug):
            from flows.evaluation import evaluation

            outcome = evaluation(str(home), run_id, model, set_ or [])
        say_outcome(outcome, home)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION, a run id, or a folder")],
    image: Annotated[Path, typer.Option(help="first frame")],
    prompt: Annotated[str, typer.Option(help="what happens in the video")],
    output: Annotated[Path, typer.Option("--output", "-o", help="video file to write")],
    seconds: Annotated[float | None, typer.Option(help="length in seconds, at least 0.1; default: one window")] = None,
    seed: Annotated[int, typer.Option(help="seed of the noise, from 0")] = 0,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Animate an image with a published model."""
    with reporting(debug):
        from flows.generation import animate

        made = animate(checked_home(workspace), model, image, prompt, output, seconds, seed, warn=warn)
        typer.echo(f"{output}: {made}")


@app.command(short_help="Compare runs: scores, config, videos.")
def compare(
    runs: Annotated[list[str], typer.Argument(help="ids of two or more runs, or of a sweep")],
    variant: Annotated[str | None, typer.Option(help="row of the score table; default: the student's")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page to write, with videos")] = None,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Compare runs: scores with differences, config fields that differ, videos of the same clips."""
    with reporting(debug):
        from flows.comparison import compare as compared

        say_comparison(compared(checked_home(workspace), runs, variant, output), output)


@app.command(short_help="List the newest runs, with their ids and scores.")
def runs(
    limit: Annotated[int, typer.Option(min=1, help="how many, the newest first")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, one object per run")] = False,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """List the newest runs, with their ids and scores; every command takes the beginning of an id."""
    with reporting(debug), uncollected():
        from flows import listing

        rows = listing.newest(checked_home(workspace), limit)
        if as_json:
            typer.echo(listing.as_json(rows))
            return
        wide_console().print(listing.as_table(rows))


@app.command(short_help="Make a model the champion if its gate holds.")
def promote(
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION")
    ] = "models:/magic141@candidate",
    set_: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="promote despite the gate")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="return to the champion before the last promotion")
    ] = False,
    alias: Annotated[str, typer.Option(help="with --rollback: the alias to move back")] = "champion",
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Make a published model the champion if the gate of its config holds (publish.gate)."""
    with reporting(debug):
        from flows import promotion

        promotion.require_fitting(rollback, alias, set_ or [])
        if rollback:
            uri, version = promotion.rollback(checked_home(workspace), model, alias)
            typer.echo(f"{uri} is version {version} again")
            return
        say_decision(promotion.promote(checked_home(workspace), model, set_ or [], force))


@app.command(short_help="Serve a model: a web page, and POST picture + prompt.")
def serve(
    model: Annotated[
        str, typer.Option(help="models:/NAME@ALIAS, models:/NAME/VERSION, a run id, or a folder")
    ] = "models:/magic141@champion",
    host: Annotated[str, typer.Option(help="address to listen on; loopback is not reachable from elsewhere")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="port to listen on")] = 8141,
    set_: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of the limits (docs/serving.md)")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="replace what the Ray cluster already serves")] = False,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """Serve a published model: POST an image and a prompt, get a video; with a web page at /."""
    with reporting(debug):
        from flows.serving import serve as serving

        serving(checked_home(workspace, (STORE, RAY)), model, host, port, set_ or (), replace, say=typer.echo)


@app.command(short_help="List runs and all below them, or delete them in MLflow.")
def delete(
    runs: Annotated[list[str], typer.Argument(help="ids of runs")],
    yes: Annotated[bool, typer.Option("--yes", help="delete what is listed, instead of only listing it")] = False,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """List runs and all below them; --yes marks them as deleted in MLflow. `gc` then frees what only they made."""
    with reporting(debug):
        from flows import deletion
        from magic141.tracking import open_store

        home = checked_home(workspace)
        tracker = open_store(home)
        found = deletion.family(tracker, runs)
        if names := deletion.published(tracker, found):
            warn(f"{', '.join(names)}: published by these runs; it stays usable, but may then not be judged any more")
        if yes:
            deletion.delete(tracker, found)
        say_deletion(home, found, yes)


@app.command(short_help="List, or remove, what no run refers to any more.")
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="remove what is listed, instead of only listing it")] = False,
    workspace: Workspace = None,
    debug: Debug = False,
) -> None:
    """List, or remove, what no run refers to: artifacts of runs deleted in MLflow, leftovers of killed runs."""
    with reporting(debug):
        from flows.cleaning import find_leftovers, remove

        home = checked_home(workspace)
        say_cleaning(home, find_leftovers(home), remove if delete else None)


@app.command(short_help="Show what is installed, and what is missing.")
def doctor(workspace: Workspace = None, debug: Debug = False) -> None:
    """Show what is installed, on which device, what is missing and how to get it."""
    with reporting(debug):
        from flows.doctor import examine

        say_findings(examine(use_workspace(workspace)))
