"""Prints what a command has made or found: results and where they are, tables, verdicts, what can be deleted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flows.command_line.endings import FAILURE, typed
from flows.records.commands import run_page, workspace_option

if TYPE_CHECKING:
    from rich.console import Console

    from flows.cleaning import Findings, Leftover
    from flows.comparison import Comparison
    from flows.doctor import Finding
    from flows.promotion import Decision
    from flows.records.session import Outcome
    from flows.sweep import SweepOutcome
    from magic141.tracking import Run

FILE_COLUMNS = 140


def warn(text: str) -> None:
    """Prints a note to stderr."""
    typer.secho(f"note: {text}", fg="yellow", err=True)


def say_version(wanted: bool) -> None:
    """Prints version and commit, and ends the program, if that is wanted."""
    if not wanted:
        return
    from magic141 import __version__
    from tasks.provenance import git_commit

    commit = git_commit()
    typer.echo(f"magic141 {__version__}{f' ({commit})' if commit else ''}")
    raise typer.Exit


def wide_console() -> Console:
    """A console for tables: as wide as the terminal; in a file, wide enough for run ids and text."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else FILE_COLUMNS)


def say_outcome(outcome: Outcome, home: Path) -> None:
    """Prints where the results of a finished flow are."""
    if outcome.report:
        typer.echo(f"report  {outcome.report}")
    if outcome.headline:
        typer.echo(f"scores  {outcome.headline}")
    _say_run(outcome.run_id, outcome.tracking_uri)
    if outcome.previous:
        runs = (outcome.previous, outcome.run_id)
        page = shlex.join([typed("magic141"), "compare", *runs, *workspace_option(home), "-o", "compare.html"])
        typer.echo(f"compare {page}")
    num_reused = len(outcome.reused)
    reused = f", {num_reused} stage{'s' * (num_reused > 1)} reused" if num_reused else ""
    typer.echo(f"done    in {outcome.seconds:.1f} s{reused}")


def _say_run(run_id: str, tracking_uri: str) -> None:
    """Prints a run's id and how to look at it: its page on the server, or `mlflow ui` on the database."""
    command = shlex.join([typed("mlflow"), "ui", "--backend-store-uri", tracking_uri])
    typer.echo(f"mlflow  run {run_id}; {run_page(tracking_uri, run_id) or command}")


def say_sweep(outcome: SweepOutcome) -> None:
    """Prints the table of a sweep; the reasons of failures are in the error that ends it."""
    from rich.markup import escape
    from rich.table import Table

    from flows.sweep import shown

    dimensions = shown(outcome.members)
    table = Table(box=None, pad_edge=False)
    for heading in ("member", *(d.heading for d in dimensions)):
        table.add_column(heading, overflow="fold")  # many values begin alike
    table.add_column("run", no_wrap=True)
    for member in outcome.members:
        cells = (member.cell(d) for d in dimensions)
        table.add_row(escape(member.label), *cells, member.run_id or "[red]failed[/]")
    wide_console().print(table)
    if outcome.page:
        typer.echo(f"page    {outcome.page}")
    _say_run(outcome.run_id, outcome.tracking_uri)
    typer.echo(f"done    in {outcome.seconds:.1f} s")


def say_comparison(found: Comparison, page: Path | None) -> None:
    """Prints how runs differ, and where the page is."""
    for remark in found.remarks:
        warn(remark)
    for table in found.tables:
        if table.row_count:
            wide_console().print(table, "")
    if page:
        typer.echo(f"page  {page}")


def say_decision(decision: Decision) -> None:
    """Prints the gate's verdicts; exits with 1 if the model was not promoted."""
    typer.echo(decision.runs.text)
    for verdict in decision.verdicts:
        mark = "·" if not verdict.compared else "✓" if verdict.holds else "✗"
        typer.echo(f"{mark} {verdict.what:<32} {verdict.why}")
    if not decision.promoted:
        for remedy in decision.remedies:
            typer.echo(f"→ {remedy}", err=True)
        typer.secho(f"not promoted: {decision.champion} stays where it is; --force moves it", fg="red", err=True)
        raise typer.Exit(FAILURE)
    unseen = "; some conditions had nothing to compare with" if any(not v.compared for v in decision.verdicts) else ""
    typer.echo(f"{decision.champion} is version {decision.version}{unseen}")


def say_findings(findings: Iterable[Finding]) -> None:
    """Prints the diagnosis line by line as it is made; exits with 1 if something is wrong."""
    ok = True
    for finding in findings:
        ok &= finding.ok
        mark = "✗" if not finding.ok else "!" if finding.remedy else "✓"
        typer.echo(f"{mark} {finding.name:<20} {finding.state}")
        if finding.remedy:
            typer.echo(f"  → {finding.remedy}")
    if not ok:
        raise typer.Exit(FAILURE)


def say_deletion(home: Path, runs: Sequence[Run], done: bool) -> None:
    """Prints which runs of a workspace are, or would be, marked as deleted."""
    from flows.records.commands import command

    for run in runs:
        typer.echo(f"{run.info.run_id}  {run.info.run_name}")
    freeing = command("gc", workspace=home)
    more = f"deleted; `{freeing}` frees what only they have made" if done else "in all; --yes deletes them"
    typer.echo(f"{len(runs)} run{'s' * (len(runs) != 1)} {more}")


def say_cleaning(
    home: Path, found: Findings, remove: Callable[[Path, Sequence[Leftover]], Iterable[Leftover]] | None
) -> None:
    """Prints what no run refers to, listed or removed; exits with 1 if something could not be removed."""
    freed = failed = 0
    for leftover in remove(home, found.leftovers) if remove else found.leftovers:
        freed += 0 if leftover.error else leftover.num_bytes
        failed += bool(leftover.error)
        what = f"not removed: {leftover.error}" if leftover.error else leftover.why
        typer.echo(f"{leftover.num_bytes / 1e6:12,.1f} MB  {leftover.path.relative_to(home)}: {what}")
    nothing = f"nothing to remove in {home}"
    how = nothing if not found.leftovers else "removed" if remove else "in all; --delete removes it"
    typer.echo(f"{freed / 1e6:12,.1f} MB  {how}")
    if found.num_unknown:
        from magic141.tracking import STORES

        nobodys = "no run of this store, not even a deleted one, made them"
        whose = f"{' and '.join(found.unasked)} may need them" if found.unasked else nobodys
        gone = f"; if a store is gone for good, delete its line in {home / STORES}" if found.unasked else ""
        asking = f"if another store did, set MLFLOW_TRACKING_URI to it and repeat this{gone}"
        typer.echo(f"{found.num_unknown} left alone, because {whose}: {asking}")
    if failed:
        raise typer.Exit(FAILURE)
