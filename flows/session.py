"""The parent run of a pipeline or evaluation: opens it, runs stages in it, publishes scores. Independent of Prefect."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.faults import explaining
from flows.reach import STORE, require_servers
from flows.resume import marking_resumable
from magic141.config import PipelineConfig, config_digest, to_yaml
from magic141.evaluation.scores import COSTS
from magic141.frozen import FrozenConfig
from magic141.tracking import RunLog, Tracker
from magic141.urls import without_credentials
from tasks.console import StageConsole
from tasks.provenance import commit_tag
from tasks.run_stage import run_stage
from tasks.stage import Stage, StageContext


class Outcome(FrozenConfig):
    """The result of a flow, in plain values that Prefect can store.

    Attributes:
        run_id: MLflow run of the whole pipeline or evaluation.
        tracking_uri: the store that holds it, without credentials.
        report: the HTML report, if the report stage ran.
        seconds: time from the opening of the run to its end.
        reused: stages whose artifacts were reused.
    """

    run_id: str
    tracking_uri: str
    report: str | None
    seconds: float
    reused: tuple[str, ...]


@dataclass(frozen=True)
class Session:
    """An open parent run with the state of its stages."""

    context: StageContext
    run: RunLog
    started: float

    def run_stages(self, stages: Sequence[Stage], run: Callable[[Stage, StageContext], object] = run_stage) -> Outcome:
        """Runs stages in order, by `run`; publishes the scores; returns the outcome."""
        for stage in stages:
            stage.require_unedited()  # for all stages now: later ones may use modules that the first one imports
        for stage in stages:
            run(stage, self.context)
        self._publish_scores()
        return self._outcome()

    def scores(self) -> list[dict[str, Any]]:
        """The score table, one row per variant; empty before evaluation."""
        ref = self.context.artifacts.get("evaluate")
        return read_scores(ref.path) if ref else []

    def _publish_scores(self) -> None:
        table = self.scores()
        if not table:
            return
        self.run.metrics({f"scores/{row['variant']}/{name}": v for row in table for name, v in _numbers(row).items()})
        student = next((row for row in table if str(row["variant"]).startswith("student")), table[-1])
        self.run.metrics({f"student/{name}": value for name, value in _numbers(student).items()})

    def _outcome(self) -> Outcome:
        seconds = time.monotonic() - self.started
        report = self.context.artifacts.get("report")
        self.run.metrics({"total_seconds": seconds})
        return Outcome(
            run_id=self.run.run_id,
            tracking_uri=without_credentials(self.context.tracker.uri),
            report=str(report.path / "report.html") if report else None,
            seconds=round(seconds, 1),
            reused=tuple(self.context.reused),
        )


@contextmanager
def open_session(
    config: PipelineConfig, kind: str, tags: Mapping[str, str], refresh: Sequence[str] = ()
) -> Iterator[Session]:
    """Opens the parent run; closes it as FINISHED, FAILED or KILLED."""
    started = time.monotonic()
    require_servers([STORE])  # not Prefect, which runs already or is not needed
    with marking_resumable(), explaining(config.home):
        tracker = Tracker(config.home, config.experiment)
        run = tracker.start_parent(config.name, kind, {**identity(config), **tags})
        with closing(run):
            run.text(to_yaml(config), "config.yaml")
            run.params(config.model_dump(mode="json"))  # for MLflow's compare view of whole runs
            context = StageContext(config, tracker, run.run_id, StageConsole(), frozenset(refresh))
            yield Session(context, run, started)


@contextmanager
def closing(run: RunLog) -> Iterator[None]:
    """Closes a parent run as FINISHED, FAILED or KILLED."""
    try:
        yield
    except Exception:
        run.close("FAILED")
        raise
    except BaseException:
        run.close("KILLED")
        raise
    run.close("FINISHED")


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The score table: a row per variant, a column per dimension and cost; missing scores give their reason."""
    variants = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["variants"]
    return [
        {
            "variant": variant["name"],
            **{
                name: score["value"] if score["value"] is not None else f"- ({score['reason']})"
                for name, score in variant["scores"].items()
            },
            **{cost.key: variant[cost.key] for cost in COSTS if cost.key in variant},
        }
        for variant in variants
    ]


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}


def identity(config: PipelineConfig) -> dict[str, str]:
    """Tags that identify a parent run's config and commit."""
    return {"magic141.config_digest": config_digest(config), **commit_tag()}
