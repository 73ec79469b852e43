"""`magic141 promote`: a registered model becomes the champion when the gate holds, or the champion goes back one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.judgements import Judged, judged, remedies
from flows.origin import config_of
from magic141.config import with_overrides
from magic141.errors import UserError
from magic141.evaluation.gate import Verdict, apart, judge
from magic141.evaluation.measurement import Pair, closest
from magic141.tracking import Run, Tracker, open_store, parse_uri


@dataclass(frozen=True)
class Decision:
    """What the gate said, and what was done.

    Attributes:
        champion: URI of the alias.
        version: the version that was judged.
        runs: the figures that were compared: whose, and the run that measured them.
        verdicts: of every condition, and of what kept conditions from being judged.
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
    """Judges `models:/NAME@ALIAS` or `models:/NAME/VERSION` by its run's gate and moves the champion alias.

    Of the runs that judged it and those that judged the champion, the newest two count that did so alike.

    Args:
        workspace: folder of the runs.
        model: the version to promote.
        overrides: changes to the config of its run.
        force: promote in spite of the gate, or of a champion whose runs are gone.

    Raises:
        UserError: the model, a metric that the gate names, or any judgement of one of the two does not exist.
    """
    tracker = open_store(workspace)
    name, version = tracker.registry.version(model)
    run = tracker.pipeline_run(version.run_id)
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
    """What is known of the champion; with `force` it may be nothing, and a verdict says why."""
    try:
        return judged(tracker, uri), []
    except UserError as error:
        if not force:
            raise UserError(f"the champion {uri} cannot be judged: {error}; --force replaces it") from None
        return None, [Verdict("champion", False, f"cannot be judged: {error}")]


def require_fitting(rollback: bool, alias: str, overrides: Sequence[str]) -> None:
    """Refuses options that would have no effect: the alias of a promotion comes from the config, a rollback reads none.

    Raises:
        UserError: there is one.
    """
    if rollback and overrides:
        raise UserError(f"--set {overrides[0]}: --rollback reads no config; name the alias with --alias")
    if not rollback and alias != "champion":
        raise UserError(f"--alias {alias}: only with --rollback; to promote to it, --set publish.champion={alias}")


def rollback(workspace: Path, model: str, alias: str = "champion") -> tuple[str, str]:
    """Points an alias of a model back to the version before the last promotion; returns URI and version.

    Of `model` only the name counts: whatever else is broken, the way back is open.
    """
    name, _, _ = parse_uri(model)
    return f"models:/{name}@{alias}", open_store(workspace).registry.rollback(name, alias)


def collapsed(run: Run, tracker: Tracker) -> bool | None:
    """What the collapse watch said about the student of a pipeline run; None where the store does not know.

    Asked of the store, not of the artifact: whoever promotes need not have that folder.
    """
    student = tracker.artifacts_of(run).get("distill_dmd2")
    try:
        flag = tracker.get_run(student.run_id).data.metrics.get("collapsed") if student else None
    except UserError:
        return None
    return None if flag is None else bool(flag)
