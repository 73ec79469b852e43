"""Commands as they are printed for the user to copy."""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def command(*words: str, workspace: Path | None = None) -> str:
    """`magic141 WORDS …` for a shell, with the option that names the workspace where it takes one."""
    return shlex.join(["magic141", *words, *(workspace_option(workspace) if workspace else [])])


def workspace_option(workspace: Path) -> list[str]:
    """The option that names the workspace, where it is not the one that commands look in."""
    from magic141.config import HOME_VARIABLE  # here, for --help to be fast

    looked_in = HOME_VARIABLE not in os.environ and workspace == Path("runs").resolve()
    return [] if looked_in else ["--workspace", str(workspace)]
