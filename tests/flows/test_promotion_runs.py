"""Which runs a promotion compares: those that judged the two versions alike, whether pipelines or evaluations."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.comparison import compare
from flows.promotion import Decision, promote
from flows.records.session import open_session
from magic141.artifacts.references import ArtifactRef
from magic141.config import PipelineConfig, with_overrides
from magic141.errors import UserError
from magic141.tracking import TAG_PUBLISHER, Tracker
from tasks import evaluate, generate, publish
from tasks.stage import Stage, StageCall

GATE = (
    {"metric": "student/motion", "better": "higher"},
    {"metric": "student/latency_ms", "better": "lower", "tolerance": 5},
)
CLIPS = "generate.num_exact_clips=64"


@dataclass(frozen=True)
class Store:
    """A store in which students are trained and judged in no time, every time anew."""

    home: Path

    def train(
        self, student: str, *overrides: str, motion: float = 0.8, data: str = "data", collapsed: bool = False
    ) -> str:
        """A pipeline run that makes, judges and publishes a student as the next candidate; returns its id."""
        return self._run("pipeline", student, overrides, motion, data, collapsed)

    def judge(self, student: str, *overrides: str, motion: float = 0.8) -> str:
        """An evaluation of a student that was published before; returns its id."""
        return self._run("evaluation", student, overrides, motion, "data")

    def _run(
        self, kind: str, student: str, overrides: tuple[str, ...], motion: float, data: str, collapsed: bool = False
    ) -> str:
        gate = f"publish.gate={json.dumps(GATE)}"
        config = with_overrides(PipelineConfig(workspace=self.home), [gate, *overrides], "test")
        stages = (measuring(generate.STAGE, motion), measuring(evaluate.STAGE, motion))
        with open_session(config, kind, {}, ["generate", "evaluate"]) as session:
            context = session.context
            for name in (*generate.INPUTS, "publish"):
                run = context.tracker.start_stage(name, f"key-{name}", context.parent_id)
                if name == "distill_dmd2":
                    run.metrics({"collapsed": float(collapsed)})
                    run.flush()
                digest = {"distill_dmd2": student, "prepare_data": data}.get(name, name)
                ref = ArtifactRef(stage=name, key="k", uri=str(self.home), digest=digest, run_id=run.run_id)
                context.artifacts[name] = ref
                context.tracker.set_artifact(context.parent_id, ref, reused=False)
            session.run_stages(stages)
            if kind == "pipeline" and publish.STAGE.on_ready:
                publish.STAGE.on_ready(context, context.artifacts["publish"])
        return session.run.run_id

    def promote(self, *overrides: str, force: bool = False) -> Decision:
        return promote(self.home, "models:/magic141@candidate", overrides, force)


def measuring(stage: Stage, motion: float) -> Stage:
    """The stage with its own key, but without its work: it finds one figure of quality and one of time."""

    def work(call: StageCall) -> None:
        scores = {"motion": {"value": motion, "reason": None}}
        record = {"variants": [{"name": "student_4", "scores": scores, "latency_ms": 40.0}]}
        (call.out / "scores.json").write_text(json.dumps(record))

    return replace(stage, run=work)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: making one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker(tmp_path_factory.mktemp("home"), "unused")
    tracker.client.search_experiments()
    return tracker.workspace / "mlflow.db"


@pytest.fixture
def store(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    shutil.copy(database, tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    return Store(tmp_path)


def runs(decision: Decision) -> tuple[str, str | None]:
    champion = decision.runs.champion
    return decision.runs.candidate.run_id, champion.run_id if champion else None


def failing(decision: Decision) -> list[str]:
    return [verdict.what for verdict in decision.verdicts if not verdict.holds]


def test_versions_judged_under_other_settings_are_compared_once_the_named_command_has_run(store: Store) -> None:
    first = store.train("one", CLIPS)
    assert runs(store.promote()) == (first, None)
    second = store.train("two", motion=0.9)
    refused = store.promote()
    assert not refused.promoted
    assert runs(refused) == (second, first)
    assert failing(refused) == ["student/motion", "student/latency_ms", "generate.num_exact_clips"]
    assert refused.verdicts[-1].why == "256, the champion 64"
    (remedy,) = refused.remedies
    command = remedy.removeprefix("judge the champion as the candidate was: ")
    assert command == (
        "magic141 eval --model models:/magic141@champion --set generate.num_exact_clips=256 "
        f"--workspace {shlex.quote(str(store.home))}"
    )
    again = store.judge("one", CLIPS, "generate.num_exact_clips=256")
    accepted = store.promote()
    assert accepted.promoted
    assert runs(accepted) == (second, again)


def test_the_newest_evaluation_of_the_candidate_counts_too(store: Store) -> None:
    first = store.train("one", CLIPS)
    store.promote()
    store.train("two", motion=0.7)
    better = store.judge("two", CLIPS, motion=0.9)
    decision = store.promote()
    assert decision.promoted
    assert runs(decision) == (better, first)


def test_the_gate_is_that_of_the_run_that_published_the_version_last(store: Store) -> None:
    """A changed gate changes no result: the next run reuses the version, and publishes it again."""
    store.train("one", motion=0.7)
    refused = store.promote('publish.gate=[{"metric": "student/motion", "better": "higher", "limit": 0.9}]')
    assert not refused.promoted
    stricter = 'publish.gate=[{"metric": "student/motion", "better": "higher", "limit": 0.8}]'
    later, tracker = store.judge("one", stricter, motion=0.7), Tracker(store.home, "magic141")
    ref = tracker.registry.resolve("models:/magic141@candidate")
    assert tracker.registry.register("magic141", ref, "candidate", {TAG_PUBLISHER: later}) == "1"
    assert failing(store.promote()) == ["student/motion"]
    tracker.client.set_model_version_tag("magic141", "1", TAG_PUBLISHER, "0" * 32)  # a run that is gone
    assert store.promote().promoted


def test_steps_of_another_sampler_are_another_model(store: Store) -> None:
    first = store.train("one")
    store.judge("one", "distill_dmd2.sampler=euler", motion=0.1)
    assert runs(store.promote()) == (first, None)


def test_time_of_another_machine_is_not_compared(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tasks.provenance.cpu_model", lambda: "another CPU")
        store.train("one")
    store.promote()
    store.train("two", motion=0.9)
    refused = store.promote()
    assert failing(refused) == ["student/latency_ms", "cpu"]
    (remedy,) = refused.remedies
    assert "magic141 run --run models:/magic141@champion --from generate --until report --refresh generate" in remedy
    store.judge("one")
    assert store.promote().promoted


def test_other_threads_are_another_machine_for_time(store: Store) -> None:
    store.train("one", "generate.num_threads=1")
    store.promote()
    store.train("two", motion=0.9)
    refused = store.promote()
    assert failing(refused) == ["student/latency_ms", "generate.num_threads"]
    assert "--refresh generate --refresh evaluate --set generate.num_threads=2" in refused.remedies[0]


def test_other_data_leaves_the_limits(store: Store) -> None:
    store.train("one")
    store.promote()
    store.train("two", data="more data")
    refused = store.promote()
    assert failing(refused) == ["student/motion", "student/latency_ms", "data"]
    assert "no evaluation changes" in refused.remedies[0]
    limit = {"metric": "student/motion", "better": "higher", "tolerance": None, "limit": 0.7}
    assert store.promote(f"publish.gate={json.dumps([limit])}").promoted


def test_what_measures_has_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            Stage, "code", lambda stage: {"magic141.evaluation.scoring.frechet": "0ld", "magic141.models.vae": "0ld"}
        )
        store.train("one")
    store.promote()
    with monkeypatch.context() as patch:
        patch.setattr(
            Stage, "code", lambda stage: {"magic141.evaluation.scoring.frechet": "n3w", "magic141.models.vae": "n3w"}
        )
        store.train("two", motion=0.9)
    refused = store.promote()
    assert failing(refused)[2:] == ["code of magic141.evaluation.scoring.frechet"]
    assert [remedy.split(": ", 1)[1].split(" --workspace")[0] for remedy in refused.remedies] == [
        "magic141 eval --model models:/magic141@champion",
        "magic141 eval --model models:/magic141/2",
    ]


def test_a_version_that_no_finished_run_has_judged(store: Store) -> None:
    run_id = store.train("one")
    Tracker(store.home, "magic141").client.set_terminated(run_id, "FAILED")
    with pytest.raises(UserError, match="models:/magic141/1: no finished run has judged it; `magic141 eval --model"):
        store.promote()


def test_a_measurement_counts_no_more_whose_pipeline_run_was_deleted_for_good(store: Store) -> None:
    first, second = store.train("one"), store.train("one")
    tracker = Tracker(store.home, "magic141")
    measured = tracker.artifacts_of(tracker.get_run(first))
    for stage in ("generate", "evaluate"):
        tracker.set_artifact(second, measured[stage], reused=True)
    tracker.client.delete_run(first)
    tracker.client._tracking_client.store._hard_delete_run(first)  # as `mlflow gc` does
    with pytest.raises(
        UserError, match=r"no finished run has judged it; .*--refresh generate --refresh evaluate --w.*`"
    ):
        store.promote(force=True)
    again = store.judge("one", CLIPS)
    assert runs(store.promote()) == (again, None)


def test_a_student_that_collapsed_is_refused_whose_folder_is_on_another_machine(store: Store) -> None:
    store.train("one", motion=0.9, collapsed=True)
    assert failing(store.promote()) == ["collapse"]


def test_a_student_of_whose_collapse_nothing_is_known_is_promoted_by_force_alone(store: Store) -> None:
    parent = store.train("one")
    tracker = Tracker(store.home, "magic141")
    tracker.client.delete_run(tracker.artifacts_of(tracker.get_run(parent))["distill_dmd2"].run_id)
    with sqlite3.connect(store.home / "mlflow.db") as database:  # what `mlflow gc` does in the end
        database.execute("DELETE FROM latest_metrics WHERE key = 'collapsed'")
    assert failing(store.promote()) == ["collapse"]
    assert store.promote(force=True).promoted


def test_a_champion_whose_runs_were_deleted_is_replaced_by_force_alone(store: Store) -> None:
    first = store.train("one")
    store.promote()
    store.train("two", motion=0.9)
    Tracker(store.home, "magic141").client.delete_run(first)
    with pytest.raises(UserError, match=r"the champion models:/magic141@champion cannot be judged: .*; --force replac"):
        store.promote()
    forced = store.promote(force=True)
    assert forced.promoted
    assert failing(forced) == ["champion"]
    assert "no finished run has judged it" in forced.verdicts[-1].why
    registry = Tracker(store.home, "magic141").registry
    assert registry.history("magic141", "champion")[-1].action == "forced"


def test_the_command_names_the_two_runs_and_the_way_out(store: Store) -> None:
    first = store.train("one", CLIPS)
    store.promote()
    second = store.train("two", motion=0.9)
    result = CliRunner().invoke(app, ["promote"])
    assert result.exit_code == 1
    judged, collapse, motion, *_ = result.output.splitlines()
    assert judged == f"judged by run {second}, the champion by run {first}"
    assert collapse.startswith("✓ collapse")
    assert motion.startswith("✗ student/motion")
    assert "→ judge the champion as the candidate was: magic141 eval --model models:/magic141@champion" in result.output
    forced = CliRunner().invoke(app, ["promote", "--force"])
    assert forced.output.endswith("models:/magic141@champion is version 2\n")
    assert "→" not in forced.output


def test_a_run_is_named_by_what_it_judged_and_says_so_on_its_page(store: Store) -> None:
    run = Tracker(store.home, "magic141").get_run(store.train("one", CLIPS))
    assert run.data.metrics["student/motion"] == 0.8
    assert run.data.tags["mlflow.note.content"].startswith("**student_4: motion 0.800**")
    assert "| generate | [" in run.data.tags["mlflow.note.content"]


def test_runs_judged_under_other_settings_are_compared_with_a_line_that_judges_again(store: Store) -> None:
    first, second = store.train("one", CLIPS), store.train("two", motion=0.9)
    found = compare(store.home, [first, second], "student_4", None)
    line = "Not judged alike: generate.num_exact_clips differs. Differences below are not the model's; judge again: "
    command = shlex.join(["magic141", "eval", "--run", second, "--set", CLIPS, "--workspace", str(store.home)])
    assert found.remarks == [line + command]
    again = store.judge("two", CLIPS, motion=0.9)
    assert compare(store.home, [first, again], "student_4", None).remarks == []
    other = store.train("three", CLIPS, data="other")
    [remark] = compare(store.home, [first, other], "student_4", None).remarks
    assert remark.endswith("the runs were trained with other data, which no evaluation changes.")
