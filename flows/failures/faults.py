"""Explains known faults of the machine or of a server in one line with the remedy."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.failures.resume import Outage
from magic141.errors import UserError
from magic141.urls import without_credentials

MAX_CAUSES = 20


@dataclass(frozen=True)
class Fault:
    """A pattern in an error's text, and the line to print instead.

    In it `{home}` is the workspace, `{store}` the tracking database and `{other}` how to have another.
    """

    pattern: re.Pattern[str]
    line: str


def _fault(pattern: str, line: str) -> Fault:
    return Fault(re.compile(pattern, re.IGNORECASE), line)


FAULTS = (
    _fault(
        "Function not implemented|No locks available",
        "workspace {home}: its file system has no locks, without which two runs could do the same work; mount it with "
        "them (Lustre: -o flock), or set MAGIC141_HOME to another",
    ),
    _fault(
        "No space left on device|database or disk is full|Disk quota exceeded",
        "workspace {home}: the disk is full; free some space, or set MAGIC141_HOME to a larger disk",
    ),
    _fault(
        "database is locked",
        "the tracking database is locked: another process has been writing to it for too long; end that process, or "
        "use a server for many runs at once (infra/README.md)",
    ),
    _fault(
        "database disk image is malformed|file is not a database",
        "{store} is damaged, or no database; put a copy of it back, or {other}: without it results are made again",
    ),
    _fault(
        "attempt to write a readonly database|unable to open database file",
        "{store} cannot be written; give this user the right to, or {other}",
    ),
    _fault(
        r"\b5\d\d\b.*mlflow-artifacts",
        "MLFLOW_TRACKING_URI: the server could not store an artifact; its artifact root may be full or not writable: "
        "see the server's log",
    ),
    _fault(
        "No module named 'boto3'",
        "MLFLOW_TRACKING_URI: its artifact store is on S3, which needs boto3; install the extra with uv pip install "
        "-e '.[s3]', or give the server --artifacts-destination in place of --default-artifact-root",
    ),
    _fault(
        r"failed with error code 40[13]\b|\b40[13] Client Error.*mlflow",
        "MLFLOW_TRACKING_URI: the server refuses the credentials; set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    _fault(
        r"API request to \S+ failed with|Max retries exceeded with url",
        "MLFLOW_TRACKING_URI: the server does not answer any more; start it again",
    ),
    _fault(
        "All connection attempts failed|Failed to reach API",
        "PREFECT_API_URL: the server does not answer any more; start it again",
    ),
)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explaining(home: Path) -> Iterator[None]:
    """Re-raises a known fault as an Outage with its line; other errors pass unchanged."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if line := known_fault(error, home):
            raise Outage(line) from error
        raise


def known_fault(error: BaseException, home: Path) -> str | None:
    """The line for an error or one of its causes; None if it is not a known fault."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _DENIED and cause.filename:
            return (
                f"{cause.filename}: {cause.strerror}; give this user the right to read and write there, or set "
                "MAGIC141_HOME to a folder of yours"
            )
        if isinstance(cause, OSError) and cause.errno in _FULL and _is_elsewhere(cause.filename, home):
            return f"{cause.filename}: the disk is full; free some space there, or set TMPDIR if that is where it is"
        text = without_credentials(str(cause))
        for fault in FAULTS:
            if fault.pattern.search(text):
                return fault.line.format(home=home, **_store(home))
    return None


def _store(home: Path) -> dict[str, str]:
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return {"store": f"MLFLOW_TRACKING_URI = {without_credentials(uri)}", "other": "correct that variable"}
    return {"store": f"{home}/mlflow.db", "other": "move it away, or set MAGIC141_HOME to another folder"}


def _is_elsewhere(filename: str | None, home: Path) -> bool:
    """Whether an error names a file that is not in the workspace."""
    return bool(filename) and not Path(str(filename)).resolve().is_relative_to(home.resolve())


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, followed by its causes and contexts."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__
