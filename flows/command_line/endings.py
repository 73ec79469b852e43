"""How a command ends: exit codes, one line per mistake, the command that resumes a run."""

from __future__ import annotations

import atexit
import io
import os
import select
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130


@contextmanager
def resumable() -> Iterator[None]:
    """If a run that has begun does not finish, prints the command that resumes it, even if it is killed."""
    from flows.command_line.last_words import last_words
    from flows.failures.resume import RESUME, is_resumable, way_on

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
    home = os.environ.get("MAGIC141_HOME")
    given = any(word.partition("=")[0] == "--workspace" for word in sys.argv)
    return shlex.join([typed("magic141"), *sys.argv[1:], *(["--workspace", home] if home and not given else [])])


def typed(tool: str) -> str:
    """What calls a tool of this environment in the user's shell: its name if it is on PATH, otherwise its file."""
    own, found = Path(sys.argv[0]).with_name(tool), shutil.which(tool)
    if not own.is_file() or (found and os.path.samefile(found, own)):
        return tool
    return str(own)


@contextmanager
def reporting(debug: bool) -> Iterator[None]:
    """Prints user errors (exit code 2) and other failures (1) as one line; tracebacks only with --debug."""
    from magic141.errors import UserError

    _replace_unencodable()
    try:
        yield
    except UserError as error:
        if debug:
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(USER_ERROR) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would disturb Ray's shutdown
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


def _replace_unencodable() -> None:
    """A character that the terminal's encoding lacks becomes a question mark; it must not end a command half way."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _say_failure(error: Exception) -> int:
    """Prints one line for a failure, with the remedy if it is a known fault; returns the exit code."""
    from flows.failures.faults import known_fault
    from flows.failures.resume import is_resumable
    from magic141.config import default_home
    from magic141.urls import without_credentials

    if line := known_fault(error, default_home()):
        typer.secho(f"error: {line}", fg="red", err=True)
        return USER_ERROR
    typer.secho(f"failed: {type(error).__name__}: {without_credentials(str(error))}", fg="red", err=True)
    kept = "the traceback is in error.txt of the stage's MLflow run; " if is_resumable(error) else ""
    typer.echo(f"{kept}--debug shows {'it' if kept else 'the traceback'} here", err=True)
    return FAILURE
