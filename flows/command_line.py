"""Shared by the commands: finds the workspace, starts Prefect, prints results, sets exit codes."""

from __future__ import annotations

import io
import os
import select
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from flows.cleaning import Findings, Leftover
    from flows.server import PrefectServer
    from flows.session import Outcome
    from flows.sweep import SweepOutcome
    from magic141.config import PipelineConfig

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130
FILE_COLUMNS = 140


@dataclass(frozen=True)
class Selection:
    """What `run` and `plan` are to work on.

    Attributes:
        home: the workspace.
        config: the file; None if an earlier run is continued.
        values: the file's validated config; None if an earlier run is continued.
    """

    home: Path
    config: Path | None
    values: PipelineConfig | None


def selection(
    config: Path | None,
    origin: str | None,
    first: str | None,
    until: str | None,
    refresh: list[str] | None,
    overrides: list[str] | None,
    workspace: Path | None,
    must_exist: bool = True,
) -> Selection:
    """Checks the options of `run` and `plan` as far as possible before anything starts."""
    from magic141.errors import UserError
    from tasks.pipeline import known_stage

    if (config is None) == (origin is None):
        raise UserError("expected either a config, such as configs/demo.yaml, or --run with the id of an earlier run")
    if first and origin is None:
        raise UserError(f"--from {first}: expected --run with the id of an earlier run, whose results it goes on from")
    values = load(config, overrides, workspace, must_exist) if config else None
    for stage, option in [(first, "--from"), (until, "--until"), *((name, "--refresh") for name in refresh or ())]:
        if stage:
            known_stage(stage, option)
    from flows.origin import stages_between  # takes a second to import, so only after the checks above

    running = {stage.name for stage in stages_between(first, until)}
    if idle := [name for name in refresh or () if name not in running]:
        between = " ".join(f"{option} {name}" for option, name in (("--from", first), ("--until", until)) if name)
        raise UserError(f"--refresh {idle[0]}: would not run with {between}; give one of the two")
    home = values.home if values else store(workspace)
    return Selection(home, config.resolve() if config else None, values)


def load(config: Path, overrides: list[str] | None, workspace: Path | None, must_exist: bool = True) -> PipelineConfig:
    """The validated config; `must_exist`: also checks that the files and folders it names exist."""
    from magic141.config import load_config, missing_sources
    from magic141.errors import UserError

    home = os.environ.get("MAGIC141_HOME")
    if home and any(override.partition("=")[0].strip() == "workspace" for override in overrides or []):
        raise UserError(f"--set workspace: MAGIC141_HOME = {home} decides; give --workspace DIR, or unset it")
    values = load_config(config, overrides or [])
    store(workspace)
    problems = list(missing_sources(values)) if must_exist else []
    if problems:
        raise UserError("\n".join(problems))
    return values


def store(workspace: Path | None) -> Path:
    """The workspace, after checking that the servers named in the environment answer."""
    from flows.reach import require_servers

    require_servers()
    return home_of(workspace)


def home_of(workspace: Path | None) -> Path:
    """The workspace; if given on the command line, it is set for this whole process."""
    if workspace:
        os.environ["MAGIC141_HOME"] = str(workspace.expanduser().resolve())
    from magic141.config import default_home

    return default_home()


def start_prefect(home: Path, debug: bool) -> PrefectServer:
    """Starts Prefect's server for the time of this process; it takes seconds, so wait for it late."""
    from flows.server import PrefectServer
    from flows.writable import require_workspace

    require_workspace(home)
    if debug:
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "DEBUG"
    home.mkdir(parents=True, exist_ok=True)
    return PrefectServer(home)


@contextmanager
def prefect_server(home: Path, debug: bool) -> Iterator[None]:
    """Starts Prefect's server, imports slow modules meanwhile, and waits until it answers."""
    server = start_prefect(home, debug)
    import prefect  # noqa: F401  (seconds)

    import magic141.tracking  # noqa: F401

    server.wait()
    yield


@contextmanager
def resumable() -> Iterator[None]:
    """If a run that has begun does not finish, prints the command that resumes it, even if it is killed."""
    from flows.last_words import last_words
    from flows.resume import RESUME, is_resumable, way_on

    command = again()
    with last_words(f"killed; finished stages are kept; {RESUME}: {command}"):
        try:
            yield
        except BaseException as error:
            if is_resumable(error):
                typer.echo(f"finished stages are kept; {way_on(error)}: {command}", err=True)
            raise


def again() -> str:
    """This command, in a form that works in a shell without this one's PATH and MAGIC141_HOME."""
    program, found = sys.argv[0], shutil.which("magic141")
    if not Path(program).is_file() or (found and os.path.samefile(found, program)):
        program = "magic141"
    home = os.environ.get("MAGIC141_HOME")
    given = any(word.partition("=")[0] == "--workspace" for word in sys.argv)
    return shlex.join([program, *sys.argv[1:], *(["--workspace", home] if home and not given else [])])


@contextmanager
def reporting(debug: bool) -> Iterator[None]:
    """Prints user errors (exit code 2) and other failures (1) as one line; tracebacks only with --debug."""
    from magic141.errors import UserError

    _print_what_can_be()
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
        if isinstance(error, BrokenPipeError) and _nobody_reads_on():
            raise typer.Exit(FAILURE) from None
        if debug:
            raise
        raise typer.Exit(_say_failure(error)) from None


def _nobody_reads_on() -> bool:
    """Whether stdout is a pipe whose reader has gone, as with `| head`; then nothing more is written to it."""
    watch = select.poll()
    watch.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python itself writes what is left when it ends
    return True


def _print_what_can_be() -> None:
    """A sign that the terminal's encoding lacks becomes a question mark; it must not end a command half way."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _say_failure(error: Exception) -> int:
    """Prints one line for a failure, with the remedy if it is a known fault; returns the exit code."""
    from flows.faults import explain
    from flows.resume import is_resumable
    from magic141.config import default_home
    from magic141.urls import without_credentials

    if line := explain(error, default_home()):
        typer.secho(f"error: {line}", fg="red", err=True)
        return USER_ERROR
    typer.secho(f"failed: {type(error).__name__}: {without_credentials(str(error))}", fg="red", err=True)
    kept = "is error.txt of the stage's MLflow run, and " if is_resumable(error) else "is "
    typer.echo(f"the traceback {kept}shown with --debug", err=True)
    return FAILURE


def warn(text: str) -> None:
    """Prints a note to stderr."""
    typer.secho(f"note: {text}", fg="yellow", err=True)


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
        page = shlex.join(
            ["magic141", "compare", outcome.previous, outcome.run_id, *_elsewhere(home), "-o", "compare.html"]
        )
        typer.echo(f"compare {page}")
    reused = f", {len(outcome.reused)} stages reused" if outcome.reused else ""
    typer.echo(f"done    in {outcome.seconds:.1f} s{reused}")


def _elsewhere(home: Path) -> list[str]:
    """The option that names the workspace, where it is not the one that commands look in."""
    return [] if home == Path("runs").resolve() else ["--workspace", str(home)]


def _say_run(run_id: str, tracking_uri: str) -> None:
    """Prints a run's id and how to look at it: on the server, or with `mlflow ui` on the database."""
    where = tracking_uri if tracking_uri.startswith("http") else f"mlflow ui --backend-store-uri {tracking_uri}"
    typer.echo(f"mlflow  run {run_id}; {where}")


def say_sweep(outcome: SweepOutcome) -> None:
    """Prints the table of a sweep; the reasons of failures are in the error that ends it."""
    from rich.markup import escape
    from rich.table import Table

    from flows.sweep import shown

    dimensions = shown(outcome.members)
    table = Table("member", *(d.label for d in dimensions), box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    for member in outcome.members:
        cells = (f"{member.scores[d.key]:.{d.digits}f}" if d.key in member.scores else "-" for d in dimensions)
        table.add_row(escape(member.label), *cells, member.run_id or "[red]failed[/]")
    wide_console().print(table)
    _say_run(outcome.run_id, outcome.tracking_uri)
    typer.echo(f"done    in {outcome.seconds:.1f} s")


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
        typer.echo(
            f"left alone, because made with another store: {found.num_unknown}; MLFLOW_TRACKING_URI names that to ask"
        )
    if failed:
        raise typer.Exit(FAILURE)
