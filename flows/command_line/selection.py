"""What a command works on and runs: its config or earlier run, the workspace, Prefect's server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.command_line.startup import uncollected
from flows.failures.servers import SERVERS, STORE

if TYPE_CHECKING:
    from flows.orchestration.server import PrefectServer
    from flows.records.session import Outcome
    from magic141.config import PipelineConfig
    from tasks.stage import Stage


@dataclass(frozen=True)
class Selection:
    """What `run` and `plan` are to work on.

    Attributes:
        home: the workspace.
        config: the file; None if an earlier run is continued.
        values: the file's validated config; None if an earlier run is continued.
        origin: the earlier run.
        first: first stage to run.
        until: last stage to run.
        refresh: stages to compute again.
        overrides: `a.b=c` overrides of the file or the earlier run's config.
    """

    home: Path
    config: Path | None
    values: PipelineConfig | None
    origin: str | None
    first: str | None
    until: str | None
    refresh: tuple[str, ...]
    overrides: tuple[str, ...]


def selection(
    config: Path | None,
    origin: str | None,
    first: str | None,
    until: str | None,
    refresh: list[str] | None,
    overrides: list[str] | None,
    workspace: str | None,
    must_exist: bool = True,
) -> Selection:
    """Checks the options of `run` and `plan` as far as possible before anything starts."""
    from magic141.errors import UserError
    from tasks.pipeline import known_stage, stages_between

    if config is None and origin is None:
        raise UserError("expected a config, such as configs/demo.yaml, or --run with the id of an earlier run")
    if config is not None and origin is not None:
        raise UserError(f"config {config} and --run {origin}: expected one of them; an earlier run has its config")
    if first is not None and origin is None:
        raise UserError(f"--from {first}: expected --run with the id of an earlier run, whose results it goes on from")
    values = _load(config, overrides, workspace, must_exist) if config else None
    for name in refresh or ():
        known_stage(name, "--refresh")
    stages = stages_between(first, until)
    running = {stage.name for stage in stages}
    if idle := [name for name in refresh or () if name not in running]:
        between = " ".join(f"{option} {name}" for option, name in (("--from", first), ("--until", until)) if name)
        raise UserError(f"--refresh {idle[0]}: would not run with {between}; give one of the two")
    home = values.home if values else checked_home(workspace, SERVERS)
    if origin is not None:
        require_origin(home, origin, stages, overrides or ())
    file = config.resolve() if config else None
    return Selection(home, file, values, origin, first, until, tuple(refresh or ()), tuple(overrides or ()))


def _load(config: Path, overrides: list[str] | None, workspace: str | None, must_exist: bool) -> PipelineConfig:
    """The validated config; `must_exist`: also checks that the files and folders it names exist."""
    from magic141.config import load_config, missing_sources
    from magic141.errors import UserError

    refuse_second_workspace(overrides, workspace)
    values = load_config(config, overrides or [])
    checked_home(workspace, SERVERS)
    problems = list(missing_sources(values)) if must_exist else []
    if problems:
        raise UserError("\n".join(problems))
    return values


def refuse_second_workspace(overrides: list[str] | None, workspace: str | None) -> None:
    """Refuses `--set workspace` where something else decides, and would do so in silence."""
    from magic141.config import HOME_VARIABLE
    from magic141.errors import UserError

    if not any(override.partition("=")[0].strip() == "workspace" for override in overrides or []):
        return
    if workspace is not None:
        raise UserError(f"--set workspace: overruled by --workspace {workspace}; give only one of them")
    if home := os.environ.get(HOME_VARIABLE):
        raise UserError(f"--set workspace: overruled by {HOME_VARIABLE} = {home}; give --workspace DIR, or unset it")


def require_origin(home: Path, source: str, stages: Sequence[Stage], overrides: Sequence[str]) -> None:
    """Checks an earlier run, and what was set, before anything starts: a flow run that fails tells the whole team."""
    from flows.failures.writable import require_workspace
    from flows.records.origin import continued_config, find_origin

    require_workspace(home)
    continued_config(find_origin(home, source), stages, overrides)


def checked_home(workspace: str | None, servers: Sequence[str] = (STORE,)) -> Path:
    """The workspace, after checking that those servers answer that the command needs and the environment names."""
    from flows.failures.reach import require_servers

    require_servers(servers)
    return use_workspace(workspace)


def use_workspace(workspace: str | None) -> Path:
    """The workspace; if given on the command line, it is that of this process and of those that it starts."""
    from magic141.config import HOME_VARIABLE, default_home, workspace_folder
    from magic141.errors import UserError

    if workspace is not None:
        if not workspace.strip():  # as a path, it would be the current folder
            raise UserError(
                f"--workspace is empty, expected a folder; without it, runs are in {HOME_VARIABLE}, or in runs"
            )
        os.environ[HOME_VARIABLE] = str(workspace_folder(workspace))
    return default_home()


def run_selected(chosen: Selection, debug: bool) -> Outcome:
    """Runs what was selected; without Prefect if all of it is reused. Slow imports go on while its server starts."""
    server = start_prefect(chosen.home, debug)
    if server.embedded and chosen.values and not chosen.refresh:
        with uncollected():
            from flows.command_line.unchanged import first_to_run, run_unchanged
            from tasks.pipeline import stages_between

            stages = stages_between(None, chosen.until)
            work = first_to_run(chosen.values, stages)
        if work is None:
            server.stop()  # it is not needed, and other commands wait while it starts
            return run_unchanged(chosen.values, stages, chosen.overrides)
        work.import_code()
    from flows.pipeline import pipeline, rerun

    server.wait()
    overrides, refresh = list(chosen.overrides), list(chosen.refresh)
    if chosen.origin:
        return rerun(str(chosen.home), chosen.origin, chosen.first, overrides, chosen.until, refresh)
    return pipeline(str(chosen.config), overrides, chosen.until, refresh)


def start_prefect(home: Path, debug: bool) -> PrefectServer:
    """Starts Prefect's server for the time of this process; it takes seconds, so wait for it late."""
    from flows.failures.writable import require_workspace
    from flows.orchestration.server import PrefectServer

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
