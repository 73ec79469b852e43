"""Commands as they are printed for the user to copy."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magic141.tracking import Run

UI_VARIABLE = "MAGIC141_MLFLOW_UI_URL"


def command(*words: str, workspace: Path | None = None) -> str:
    """`magic141 WORDS …` for a shell, with the option that names the workspace where it takes one."""
    return shlex.join(["magic141", *words, *(workspace_option(workspace) if workspace else [])])


def command_again(run: Run, workspace: Path, source: str | None = None) -> str:
    """The command that makes a run again, or goes on where it ended: on the results that it was itself based on.

    Args:
        run: a pipeline run.
        workspace: folder of the runs.
        source: how the user named it, if not by its id: a model's URI also leads to a run that was deleted.
    """
    from magic141.tracking.tags import EVALUATION, TAG_FIRST, TAG_KIND  # here, for --help to be fast

    tags = run.data.tags
    if tags.get(TAG_KIND) == EVALUATION:
        return command("eval", "--run", source or run.info.run_id, workspace=workspace)
    first = ["--from", tags[TAG_FIRST]] if TAG_FIRST in tags else []
    return command("run", "--run", source or run.info.run_id, *first, workspace=workspace)


def run_page(tracking_uri: str, run_id: str) -> str | None:
    """The address of a run's page if MLflow is a server; MAGIC141_MLFLOW_UI_URL overrides its address for browsers."""
    from magic141.urls import without_credentials

    server = without_credentials(os.environ.get(UI_VARIABLE) or tracking_uri).rstrip("/")
    return f"{server}/#/runs/{run_id}" if server.startswith(("http://", "https://")) else None


def workspace_option(workspace: Path) -> list[str]:
    """The option that names the workspace, where it is not the one that commands look in."""
    from magic141.config import HOME_VARIABLE  # here, for --help to be fast

    looked_in = HOME_VARIABLE not in os.environ and workspace == Path("runs").resolve()
    return [] if looked_in else ["--workspace", str(workspace)]
