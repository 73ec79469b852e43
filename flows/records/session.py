"""The parent run of a pipeline or evaluation: opens it, runs stages in it, publishes scores. Independent of Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flows.failures.faults import explaining
from flows.failures.reach import require_servers
from flows.failures.resume import marking_resumable
from flows.failures.servers import STORE
from flows.records.commands import command_again
from flows.records.naming import TAG_DESCRIPTION, description, overrides_tag, run_name
from magic141.cluster.room import slow_without_gpu
from magic141.config import PipelineConfig, to_yaml
from magic141.evaluation.reports.headline import beside_teacher, headline, student_row
from magic141.evaluation.scores import COSTS, read_variants
from magic141.frozen import FrozenConfig
from magic141.tracking import TAG_PARENT, RunLog, Tracker, closing
from magic141.tracking.tags import PIPELINE, TAG_ARTIFACT, TAG_KIND, TAG_ORIGIN
from magic141.urls import without_credentials
from tasks.console import StageConsole
from tasks.provenance import source_tags
from tasks.run_stage import run_stage
from tasks.stage import Stage, StageContext

MOST_RUNS = 100  # among which the last one of a config is looked for


class Outcome(FrozenConfig):
    """The result of a flow, in plain values that Prefect can store.

    Attributes:
        run_id: MLflow run of the whole pipeline or evaluation.
        tracking_uri: the store that holds it, without credentials.
        report: the HTML report, if the report stage ran.
        seconds: time from the opening of the run to its end.
        reused: stages whose artifacts were reused.
        headline: the student's first scores, if there are scores.
        previous: the run before this one, to compare it with, if there is one.
    """

    run_id: str
    tracking_uri: str
    report: str | None
    seconds: float
    reused: tuple[str, ...]
    headline: str = ""
    previous: str | None = None


@dataclass(frozen=True)
class Session:
    """An open parent run with the state of its stages.

    Attributes:
        context: the state of its stages.
        run: the parent run.
        started: when it began, in seconds of the monotonic clock.
        origin: the run that it goes on from, if there is one.
    """

    context: StageContext
    run: RunLog
    started: float
    origin: str | None = None

    def run_stages(self, stages: Sequence[Stage], run: Callable[[Stage, StageContext], object] = run_stage) -> Outcome:
        """Runs stages in order, by `run`; publishes the scores; returns the outcome."""
        for stage in stages:
            stage.require_unedited()  # for all stages now: later ones may use modules that the first one imports
        for stage in stages:
            run(stage, self.context)
        variants = self._variants()
        self._publish_scores(variants)
        said = headline(variants)
        self._describe(said, [stage.name for stage in stages if stage.name not in self.context.reused])
        return self._outcome(said)

    def scores(self) -> list[dict[str, Any]]:
        """The score table, one row per variant; empty before evaluation."""
        return [score_row(variant) for variant in self._variants()]

    def _publish_scores(self, variants: Sequence[Mapping[str, Any]]) -> None:
        student = student_row(variants)
        if student is None:
            return
        figures = {**beside_teacher(variants), **_numbers(score_row(student)), **_errors(student)}
        self.run.metrics({f"student/{name}": value for name, value in figures.items()})
        for variant in variants:
            row = {**_numbers(score_row(variant)), **_errors(variant)}
            self.run.metrics({f"scores/{variant['name']}/{name}": value for name, value in row.items()})

    def _variants(self) -> list[dict[str, Any]]:
        ref = self.context.artifacts.get("evaluate")
        return read_variants(ref.path) if ref else []

    def _describe(self, said: str, made: Sequence[str]) -> None:
        """What a person finds on the run's page without opening its stages: scores, the way back, the report."""
        context, report = self.context, self.context.artifacts.get("report")
        experiment_id = context.tracker.experiment_id
        again = command_again(context.tracker.get_run(self.run.run_id), context.home)
        text = description(said, again, experiment_id, context.artifacts, made)
        self.run.tags({TAG_DESCRIPTION: text})
        if report:
            self.run.file(report.path / "report.html")

    def _previous(self) -> str | None:
        """The run to compare this one with: that which it goes on from, or the config's last; it must have scores.

        Members of sweeps and evaluations do not count as a config's last.
        """
        tracker, name = self.context.tracker, self.context.config.name
        scored = f"tags.`{TAG_ARTIFACT}.evaluate` LIKE '%' and attributes.status = 'FINISHED'"
        if self.origin:
            found = tracker.search(f"{scored} and attributes.run_id = '{self.origin}'", 1, everywhere=True)
        else:
            runs = tracker.search(f"{scored} and tags.`{TAG_KIND}` = '{PIPELINE}'", MOST_RUNS)
            found = [run for run in runs if run.data.params.get("name") == name and TAG_PARENT not in run.data.tags]
        return found[0].info.run_id if found else None

    def _outcome(self, said: str) -> Outcome:
        seconds = time.monotonic() - self.started
        report = self.context.artifacts.get("report")
        self.run.metrics({"total_seconds": seconds})
        return Outcome(
            run_id=self.run.run_id,
            tracking_uri=without_credentials(self.context.tracker.uri),
            report=str(report.path / "report.html") if report else None,
            seconds=round(seconds, 1),
            reused=tuple(self.context.reused),
            headline=said,
            previous=self._previous() if said else None,
        )


@contextmanager
def open_session(
    config: PipelineConfig,
    kind: str,
    tags: Mapping[str, str],
    refresh: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Iterator[Session]:
    """Opens the parent run, named by what was set; closes it as FINISHED, FAILED or KILLED."""
    started = time.monotonic()
    require_servers([STORE])  # not Prefect, which runs already or is not needed
    with marking_resumable(), explaining(config.home):
        tracker = Tracker(config.home, config.experiment)
        named = {**source_tags(), **overrides_tag(overrides), **tags}
        run = tracker.start_parent(run_name(config.name, kind, overrides), kind, named)
        with closing(run):
            run.text(to_yaml(config), "config.yaml")
            run.params(config.model_dump(mode="json"))  # for MLflow's compare view of whole runs
            context = StageContext(config, tracker, run.run_id, StageConsole(), frozenset(refresh))
            if remark := slow_without_gpu(config.data):
                context.console.note(kind, remark)
            yield Session(context, run, started, tags.get(TAG_ORIGIN))


def score_row(variant: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's row of the score table: a column per dimension and cost; missing scores give their reason."""
    scores = {
        name: score["value"] if score["value"] is not None else f"- ({score['reason']})"
        for name, score in variant["scores"].items()
    }
    costs = {cost.key: variant[cost.key] for cost in COSTS if cost.key in variant}
    return {"variant": variant["name"], **scores, **costs}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}


def _errors(variant: Mapping[str, Any]) -> dict[str, float]:
    """Standard errors of a variant's scores, as far as they are known."""
    scores = variant["scores"].items()
    return {f"{name}_stderr": float(score["stderr"]) for name, score in scores if score.get("stderr") is not None}
