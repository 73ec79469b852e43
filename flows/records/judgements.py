"""Measurements of a registered version by earlier runs, with their conditions, and commands to measure it again."""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.records.commands import command
from magic141.artifacts.references import flatten
from magic141.errors import UserError
from magic141.evaluation.measurement import SAMPLED_ON, Difference, Measurement, as_setting
from magic141.evaluation.scoring.vbench_needs import computed_by
from magic141.tracking import Run, Tracker
from tasks.provenance import cpu_model

JUDGED_BY = ("generate", "evaluate")
TRAINED_IN = ("data", "model.window_frames")
DEVICE = "device of "
CODE = "code of magic141.evaluation."  # the measuring code; code that builds and samples is part of the model


@dataclass(frozen=True)
class Judged:
    """A registered version, and its measurements by finished runs.

    Attributes:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        workspace: folder of the runs.
        settings: the run's config, flat: `section.field` -> value.
        measurements: newest first.
    """

    uri: str
    workspace: Path
    settings: Mapping[str, Any]
    measurements: tuple[Measurement, ...]

    def judge_again(self, like: Measurement, remeasure: bool) -> str:
        """The command that judges this version under the conditions of `like`, reusing results that exist.

        Args:
            like: the measurement whose settings to use.
            remeasure: also generate again, for results from another machine.
        """
        return command_like(judging(self.uri, remeasure), self.settings, like, self.workspace)


def judged(tracker: Tracker, uri: str) -> Judged:
    """The version that `uri` refers to, with the measurements of its student by all finished runs.

    Raises:
        UserError: if there is no such version, its run is missing, or no run has judged it.
    """
    version = tracker.registry.version(uri)
    run = tracker.pipeline_run(version.run_id)
    settings = dict(flatten(tracker.stored_config(run)))
    student = tracker.artifacts_of(run).get("distill_dmd2")
    runs = tracker.registry.runs_with(student) if student else []
    measurements = tuple(_measurements(tracker, runs, settings))
    if not measurements:
        judge, anew = (command(*judging(uri, again), workspace=tracker.workspace) for again in (False, True))
        raise UserError(
            f"model {uri}: no finished run has judged it; `{judge}` does, and where that reuses what a deleted run "
            f"measured, `{anew}`"
        )
    return Judged(uri, tracker.workspace, settings, measurements)


def judging(source: str, anew: bool) -> list[str]:
    """Words of the command that judges the models of a run or a version.

    Args:
        source: id of a run, or `models:/…`.
        anew: generate and score again whatever is on record; the device is in no key, so that this measures another.
    """
    if not anew:
        return ["eval", "--model" if source.startswith("models:") else "--run", source]
    again = [word for stage in JUDGED_BY for word in ("--refresh", stage)]
    return ["run", "--run", source, "--from", JUDGED_BY[0], "--until", "report", *again]


def command_like(words: Sequence[str], settings: Mapping[str, Any], like: Measurement, workspace: Path) -> str:
    """`magic141 WORDS …` for a run with `settings`, with what it takes to judge under the conditions of `like`."""
    wanted = {**like.conditions, **like.machine}
    texts = {field: as_setting(value) for field, value in wanted.items() if _can_be_set(field)}
    changed = [f"{field}={text}" for field, text in texts.items() if as_setting(settings.get(field)) != text]
    given = (word for text in changed for word in ("--set", text))
    return command(*words, *given, workspace=workspace)


def measurement_of(tracker: Tracker, run: Run) -> Measurement | None:
    """What a run measured, and under which conditions; None where that is not on record."""
    records = _records(tracker, run)
    return _measurement(tracker, run, *records) if records else None


def remedies(apart: Sequence[Difference], candidate: Judged, champion: Judged, like: Measurement) -> Iterator[str]:
    """Yields lines that tell how to make the two comparable, or that nothing can.

    Args:
        apart: differences that keep them from being compared.
        candidate: the version to promote.
        champion: the present champion.
        like: the candidate's measurement, under whose settings both are judged.
    """
    fields = {difference.field for difference in apart}
    if trained := sorted(fields.intersection(TRAINED_IN)):
        yield (
            f"the two were trained with different {' and '.join(trained)}, which no evaluation changes: judge the "
            "candidate by limits alone (publish.gate: a limit, and tolerance: null), or --force"
        )
        return
    if not fields:
        return
    remeasure = any(field in like.machine or field.startswith(DEVICE) for field in fields)
    yield f"judge the champion as the candidate was: {champion.judge_again(like, remeasure)}"
    elsewhere = remeasure and like.machine["cpu"] != cpu_model()
    if elsewhere or any(field.startswith(CODE) for field in fields):
        yield f"and the candidate with the same code and machine: {candidate.judge_again(like, remeasure)}"


def _measurements(tracker: Tracker, runs: Sequence[Run], settings: Mapping[str, Any]) -> Iterator[Measurement]:
    """The runs' measurements; of runs that share results, such as nightly ones, only the newest counts."""
    seen = set()
    for run in runs:
        refs = tracker.artifacts_of(run)
        made_by = tuple(refs[stage].run_id for stage in JUDGED_BY if stage in refs)
        if len(made_by) < len(JUDGED_BY) or made_by in seen:
            continue
        seen.add(made_by)
        records = _records(tracker, run)
        if records and _sampled_as(records[0], settings) and (found := _measurement(tracker, run, *records)):
            yield found


def _records(tracker: Tracker, run: Run) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What the stages that generated and scored say of themselves."""
    refs = tracker.artifacts_of(run)
    generated, evaluated = (_record(tracker, refs[stage].run_id) if stage in refs else None for stage in JUDGED_BY)
    return (generated, evaluated) if generated and evaluated else None


def _measurement(
    tracker: Tracker, run: Run, generated: Mapping[str, Any], evaluated: Mapping[str, Any]
) -> Measurement | None:
    try:
        measuring = tracker.pipeline_run(tracker.artifacts_of(run)[JUDGED_BY[0]].run_id)
    except UserError:  # it was deleted for good: its threads and other settings of speed are unknown
        return None
    conditions = _conditions(generated, evaluated)
    machine = _machine(generated, measuring.data.params, conditions)
    vbench = computed_by(evaluated["parts"]["inputs"].get("vbench", ""))
    return Measurement(run.info.run_id, run.data.metrics, conditions, machine, vbench)


def _record(tracker: Tracker, run_id: str) -> dict[str, Any] | None:
    """A stage run's stage.json; None if it was deleted, so that nothing can be compared with it."""
    try:
        return dict(json.loads(tracker.read_file(run_id, "stage.json")))
    except UserError:
        return None


def _sampled_as(generated: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether the student was sampled with the version's settings; with others, the same weights are another model."""
    sampling = {name: value for name, value in generated["parts"]["config"].items() if "." in name}
    return all(settings.get(name, value) == value for name, value in sampling.items())


def _conditions(generated: Mapping[str, Any], evaluated: Mapping[str, Any]) -> dict[str, Any]:
    parts, records = generated["parts"], dict(zip(JUDGED_BY, (generated, evaluated), strict=True))
    settings = {stage: record["parts"]["config"][stage] for stage, record in records.items()}
    code = {f"code of {name}": digest[:8] for r in records.values() for name, digest in r["modules"].items()}
    return {
        **dict(flatten(settings)),
        **{field: digest for field, digest in code.items() if field.startswith(CODE)},
        **{f"{DEVICE}{name}": "cpu" if _device(r) == "cpu" else "gpu" for name, r in records.items()},
        "seed": parts["seed"],
        "data": parts["inputs"]["prepare_data"][:16],
        "model.window_frames": parts["config"]["model"]["window_frames"],
    }


def _machine(generated: Mapping[str, Any], params: Mapping[str, str], conditions: Collection[str]) -> dict[str, Any]:
    """CPU and GPU models (not the host name, which changes with every pod), and settings that only affect times."""
    placement = [name for name in params if name.startswith("generate.") and name not in conditions]
    where = {"cpu": generated.get("cpu"), "device": _device(generated)}
    return where | {name: param_value(params[name]) for name in placement}


def _device(record: Mapping[str, Any]) -> Any:
    """Where a stage computed: workers may have another device than the process that finished it."""
    return record.get("summary", {}).get(SAMPLED_ON, record.get("device"))


def param_value(text: str) -> Any:
    """The value of a param, which MLflow stores as the text that Python prints for it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _can_be_set(field: str) -> bool:
    return field == "seed" or field.startswith(("generate.", "evaluate."))
