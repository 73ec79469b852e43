"""Checks before any work that results can be written where they are wanted."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote

from magic141.errors import UserError

OTHER_WORKSPACE = "set --workspace or MAGIC141_HOME to a folder of yours"


def require_workspace(home: Path) -> None:
    """Raises UserError unless runs can be written into a workspace, which need not exist yet."""
    if trouble := workspace_trouble(home):
        raise UserError(f"workspace {home}: {trouble}; {OTHER_WORKSPACE}")


def workspace_trouble(home: Path) -> str | None:
    """Why a folder cannot be a workspace; None if it can."""
    if "?" in str(home):
        return "SQLite's URLs cannot name a folder with a ?"
    if unquote(str(home)) != str(home):
        return "MLflow reads the % in it as an escape, and writes elsewhere"
    return folder_trouble(home)


def require_output(file: Path) -> None:
    """Raises UserError unless the file of --output can be written; its folder need not exist yet."""
    if trouble := _file_trouble(file):
        raise UserError(f"--output {file}: {trouble}; give the path of a file in a folder of yours")


def folder_trouble(folder: Path) -> str | None:
    """Why nothing can be written into a folder; None if it is writable or can be created. Leaves nothing there."""
    there = nearest_existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there):  # permissions alone do not tell: for root, /proc seems writable
            return None
    except OSError as error:
        return f"cannot write into {there} ({error.strerror})"


def nearest_existing(folder: Path) -> Path:
    """The folder, or its nearest ancestor that exists."""
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def _file_trouble(file: Path) -> str | None:
    try:
        if file.is_dir():
            return "is a folder"
        if file.exists():
            return None if os.access(file, os.W_OK) else "is not writable"
    except OSError as error:  # the name itself is invalid
        return str(error.strerror)
    return folder_trouble(file.parent)
