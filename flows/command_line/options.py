"""The options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.command_line.outcomes import say_version

ConfigFile = Annotated[Path | None, typer.Argument(help="YAML config, such as configs/demo.yaml; or give --run")]
Origin = Annotated[
    str | None,
    typer.Option("--run", metavar="RUN_ID", help="instead of a config: an earlier run's id, or models:/NAME@ALIAS"),
]
From = Annotated[
    str | None, typer.Option("--from", metavar="STAGE", help="first stage to run, on the earlier results of --run")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="SECTION.FIELD=VALUE; may be repeated")
]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help="last stage to run")]
Refresh = Annotated[list[str] | None, typer.Option(metavar="STAGE", help="stage to compute again; may be repeated")]
Workspace = Annotated[  # not a Path, in which an empty text is the current folder, and `//` one slash
    str | None, typer.Option(metavar="PATH", help="folder of runs (default: MAGIC141_HOME, or runs)")
]
Version = Annotated[
    bool, typer.Option("--version", callback=say_version, is_eager=True, help="show version and commit, and exit")
]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks and Prefect's log")]
