"""What must hold after a run that was killed again and again: the same results, nothing twice, nothing lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magic141.artifacts.digests import digest_file
from magic141.artifacts.references import ArtifactRef
from magic141.evaluation.scores import COSTS
from magic141.tracking import Run, Tracker

TIMED = ("generate", "evaluate", "report")  # their artifacts hold measured times: what is compared is the rest
STAGE_RUNS = "tags.`magic141.kind` = 'stage'"
MAX_RUNS = 1000


@dataclass(frozen=True)
class Result:
    """What a finished run left behind.

    Attributes:
        artifacts: stage -> artifact.
        seconds: stage -> time that it took.
        scores: variant and dimension -> score, costs left out.
    """

    artifacts: Mapping[str, ArtifactRef]
    seconds: Mapping[str, float]
    scores: Mapping[str, Any]


def read_result(tracker: Tracker) -> Result:
    """The result of the newest finished pipeline run.

    Raises:
        LookupError: there is none.
    """
    parents = search(tracker, "tags.`magic141.kind` = 'pipeline' and attributes.status = 'FINISHED'")
    if not parents:
        raise LookupError("no finished pipeline run")
    artifacts = tracker.artifacts_of(parents[0])
    made = search(tracker, f"{STAGE_RUNS} and attributes.status = 'FINISHED'")
    seconds = {run.data.tags["magic141.stage"]: run.data.metrics.get("stage_seconds", 0.0) for run in made}
    scores = artifacts.get("evaluate")
    return Result(artifacts, seconds, _scores(scores.path / "scores.json") if scores else {})


def search(tracker: Tracker, condition: str) -> list[Run]:
    """Runs of the tracker's experiment, newest first."""
    order = ["attributes.start_time DESC"]
    return list(tracker.client.search_runs([tracker.experiment_id], condition, max_results=MAX_RUNS, order_by=order))


def problems(tracker: Tracker, home: Path, reference: Result) -> Iterator[str]:
    """A line for everything that is not as it must be."""
    try:
        result = read_result(tracker)
    except LookupError as error:
        yield str(error)
        return
    yield from _differences(result, reference)
    yield from _computed_twice(tracker)
    yield from _still_running(tracker)
    yield from (
        f"{ref.stage}: artifact {state}" for ref in result.artifacts.values() if (state := ref.state()) != "intact"
    )
    yield from (f"left behind: {path.relative_to(home)}" for path in leftovers(home))


def leftovers(home: Path) -> list[Path]:
    """Half-made artifacts, and checkpoints of stages that are done."""
    hidden = list((home / "artifacts").glob("*/.*"))
    return [*hidden, *(home / "training").glob("*")]


def _differences(result: Result, reference: Result) -> Iterator[str]:
    for stage, expected in reference.artifacts.items():
        found = result.artifacts.get(stage)
        if found is None:
            yield f"{stage}: no artifact"
        elif stage not in TIMED and found.digest != expected.digest:
            yield f"{stage}: other content than undisturbed: {', '.join(_files_that_differ(found, expected))}"
        elif stage == "generate":
            videos = [name for name in _files_that_differ(found, expected) if name.endswith(".mp4")]
            yield from (f"generate: {name} differs" for name in videos)
    for name, score in reference.scores.items():
        if result.scores.get(name) != score:
            yield f"scores: {name} is {result.scores.get(name)}, undisturbed {score}"


def _files_that_differ(one: ArtifactRef, other: ArtifactRef) -> list[str]:
    first, second = ({str(p.relative_to(r.path)): p for p in r.path.rglob("*") if p.is_file()} for r in (one, other))
    both = {name for name in first.keys() & second.keys() if digest_file(first[name]) == digest_file(second[name])}
    return sorted((first.keys() | second.keys()) - both - set(one.volatile))


def _computed_twice(tracker: Tracker) -> Iterator[str]:
    runs = search(tracker, f"{STAGE_RUNS} and attributes.status = 'FINISHED'")
    counts = Counter((run.data.tags["magic141.stage"], run.data.tags["magic141.key"]) for run in runs)
    yield from (f"{stage}: {count} finished runs of one key" for (stage, _), count in counts.items() if count > 1)


def _still_running(tracker: Tracker) -> Iterator[str]:
    for run in search(tracker, "attributes.status = 'RUNNING'"):
        yield f"run {run.info.run_id} ({run.info.run_name}) is still marked as running"


def _scores(file: Path) -> dict[str, Any]:
    costs = {cost.key for cost in COSTS}
    return {
        f"{variant['name']}.{name}": score["value"]
        for variant in json.loads(file.read_text())["variants"]
        for name, score in variant["scores"].items()
        if name not in costs
    }
