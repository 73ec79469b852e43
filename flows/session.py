"""The parent run around stages, and what it keeps of them. Knows no orchestrator."""

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
from magic141.tracking import RunLog, Tracker, closing
from magic141.urls import without_credentials
from tasks.console import StageConsole
from tasks.provenance import commit_tag
from tasks.run_stage import run_stage
from tasks.stage import Stage, StageContext


class Outcome(FrozenConfig):
    """What a flow hands back: plain values that Prefect can keep.

    Attributes:
        run_id: MLflow run of the whole pipeline or evaluation.
        tracking_uri: the store that holds it, without credentials.
        report: the HTML report, if the report stage ran.
        seconds: from the flow's first line to its last.
        reused: stages whose artifacts were there.
    """

    run_id: str
    tracking_uri: str
    report: str | None
    seconds: float
    reused: tuple[str, ...]


@dataclass(frozen=True)
class Session:
    """An open parent run."""

    context: StageContext
    run: RunLog
    started: float

    def run_stages(self, stages: Sequence[Stage], run: Callable[[Stage, StageContext], object] = run_stage) -> Outcome:
        """Runs stages in order, by `run`; publishes the scores; says what came out."""
        for stage in stages:
            stage.require_unedited()  # all of them now: what the first imports, the last may work with
        for stage in stages:
            run(stage, self.context)
        self._publish_scores()
        return self._outcome()

    def scores(self) -> list[dict[str, Any]]:
        """The score table, once it is there: a row per variant."""
        ref = self.context.artifacts.get("evaluate")
        return read_scores(ref.path) if ref else []

    def _publish_scores(self) -> None:
        table = self.scores()
        if not table:
            return
        self.run.metrics({f"scores/{row['variant']}/{name}": v for row in table for name, v in _numbers(row).items()})
        student = next(row for row in table if str(row["variant"]).startswith("student_"))
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
    """Opens the parent run, closes it as FINISHED, FAILED or KILLED."""
    started = time.monotonic()
    require_servers([STORE])  # Prefect is there, or is not needed
    with marking_resumable(), explaining(config.home):
        tracker = Tracker(config.home, config.experiment)
        run = tracker.start_parent(config.name, kind, {**identity(config), **tags})
        with closing(run):
            run.text(to_yaml(config), "config.yaml")
            run.params(config.model_dump(mode="json"))  # what MLflow's compare view shows of whole runs
            context = StageContext(config, tracker, run.run_id, StageConsole(), frozenset(refresh))
            yield Session(context, run, started)


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The score table: a row per variant, a column per dimension and cost; missing scores show their reason."""
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
    """What a parent run is made from: tags."""
    return {"magic141.config_digest": config_digest(config), **commit_tag()}
