"""`magic141 promote`: makes a registered model the champion if the gate holds, or returns to the previous one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.records.judgements import Judged, judged, remedies
from flows.records.origin import config_of, publisher
from magic141.config import with_overrides
from magic141.errors import UserError
from magic141.evaluation.gate import Verdict, apart, judge
from magic141.evaluation.measurement import Pair, closest
from magic141.tracking import Run, Tracker, open_store, parse_uri


@dataclass(frozen=True)
class Decision:
    """The gate's verdicts, and what was done.

    Attributes:
        champion: URI of the champion alias.
        version: the version that was judged.
        runs: the measurements that were compared.
        verdicts: one per condition, and one for everything that kept a condition from being judged.
        promoted: whether the alias now points at the version.
        remedies: how to judge what could not be compared.
    """

    champion: str
    version: str
    runs: Pair
    verdicts: list[Verdict]
    promoted: bool
    remedies: tuple[str, ...]


def promote(workspace: Path, model: str, overrides: Sequence[str] = (), force: bool = False) -> Decision:
    """Judges `models:/NAME@ALIAS` or `models:/NAME/VERSION`; if its gate holds, moves the champion alias.

    The gate is that of the run that published it last: a run may reuse a version, and publish it with another gate.

    Compares the newest two measurements of it and of the champion that were made under the same conditions.

    Args:
        workspace: folder of the runs.
        model: the version to promote.
        overrides: `a.b=c` overrides of that run's config.
        force: promote despite the gate, or although the champion's runs are gone.

    Raises:
        UserError: if the model, a metric of the gate, or any measurement of one of the two does not exist.
    """
    tracker = open_store(workspace)
    version = tracker.registry.version(model)
    name = version.name
    run = publisher(tracker, version)
    config = with_overrides(config_of(run, tracker, workspace), overrides, "the run's config")
    gate = config.publish.conditions(has_ground_truth=config.data.source == "shapes")
    uri = f"models:/{name}@{config.publish.champion}"
    holder = tracker.registry.alias_version(name, config.publish.champion)
    if holder and holder.version == version.version:
        raise UserError(f"model {model}: version {version.version} is {uri} already; nothing to do")
    candidate = judged(tracker, f"models:/{name}/{version.version}")
    champion, unknown = _champion(tracker, uri, force) if holder else (None, [])
    pair = closest(candidate.measurements, champion.measurements if champion else ())
    verdicts = judge(pair, gate, collapsed(run, tracker)) + unknown
    holds = all(verdict.holds for verdict in verdicts)
    if holds or force:
        tracker.registry.promote(name, config.publish.champion, version.version, forced=not holds)
    ways = remedies(apart(pair, gate), candidate, champion, pair.candidate) if champion else ()
    return Decision(uri, str(version.version), pair, verdicts, holds or force, tuple(ways))


def _champion(tracker: Tracker, uri: str, force: bool) -> tuple[Judged | None, list[Verdict]]:
    """The champion's measurements; with `force` they may be missing, and a verdict says why."""
    try:
        return judged(tracker, uri), []
    except UserError as error:
        if not force:
            raise UserError(f"the champion {uri} cannot be judged: {error}; --force replaces it") from None
        return None, [Verdict("champion", False, f"cannot be judged: {error}")]


def require_fitting(rollback: bool, alias: str, overrides: Sequence[str]) -> None:
    """Refuses options without effect: a promotion takes its alias from the config, and a rollback reads no config.

    Raises:
        UserError: if there is such an option.
    """
    if rollback and overrides:
        raise UserError(f"--set {overrides[0]}: --rollback reads no config; name the alias with --alias")
    if not rollback and alias != "champion":
        raise UserError(f"--alias {alias}: only with --rollback; to promote to it, --set publish.champion={alias}")


def rollback(workspace: Path, model: str, alias: str = "champion") -> tuple[str, str]:
    """Points an alias of a model back to the version before the last promotion; returns URI and version.

    Only the name in `model` counts, so that a rollback works whatever else is broken.
    """
    name, _, _ = parse_uri(model)
    return f"models:/{name}@{alias}", open_store(workspace).registry.rollback(name, alias)


def collapsed(run: Run, tracker: Tracker) -> bool | None:
    """Whether the collapse watch found the student of a pipeline run collapsed; None if the store does not know.

    Reads the store, not the artifact, whose folder may not be on this machine.
    """
    student = tracker.artifacts_of(run).get("distill_dmd2")
    try:
        flag = tracker.get_run(student.run_id).data.metrics.get("collapsed") if student else None
    except UserError:
        return None
    return None if flag is None else bool(flag)
