"""`magic141 runs` and `magic141 delete`: what there is in a store, and how it goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import deletion
from flows.cli import app
from flows.comparison import compare
from magic141.errors import UserError
from magic141.tracking import TAG_PARENT, RunLog, Tracker
from tests.tracking.made import make_artifact


class Store:
    """A sweep with two members, of a stage each, and a pipeline beside it."""

    def __init__(self, workspace: Path) -> None:
        self.tracker = Tracker(workspace, "magic141")
        self.pipeline = self.start("demo", "pipeline")
        self.sweep = self.start("demo · sweep of 2", "sweep")
        self.members = [self.start(f"demo · seed={seed}", "pipeline", self.sweep) for seed in (0, 1)]
        self.stages = [self.tracker.start_stage("train", "key", member.run_id) for member in self.members]
        self.members[0].metrics({"student/motion": 0.5, "student/frechet": 1.25, "scores/student_4/motion": 0.5})
        self.members[1].metrics({"scores/student_4/motion": 0.25})
        for run in (self.pipeline, self.sweep, *self.members, *self.stages):
            run.close("FINISHED")

    def start(self, name: str, kind: str, parent: RunLog | None = None) -> RunLog:
        run = self.tracker.start_parent(name, kind, {TAG_PARENT: parent.run_id} if parent else {})
        run.params({"name": name})
        return run

    def active(self) -> set[str]:
        return {run.info.run_id for run in self.tracker.search_all("", everywhere=True)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))  # --workspace sets it for this process; undone at the end
    return Store(tmp_path)


def magic141(*words: str, store: Store) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*words, "--workspace", str(store.tracker.workspace)])
    return done.exit_code, done.output


def test_the_newest_runs_are_listed_with_ids_that_commands_take(store: Store) -> None:
    code, text = magic141("runs", "--json", store=store)
    newest, *others = json.loads(text)
    assert code == 0
    assert {row["kind"] for row in (newest, *others)} == {"pipeline", "sweep", "member"}
    assert len(others) == 3, "no stages"
    scored = next(row for row in (newest, *others) if row["scores"])
    assert (scored["name"], scored["scores"]) == ("demo · seed=0", {"motion": 0.5, "Fréchet": 1.25})
    code, table = magic141("runs", "--limit", "1", store=store)
    assert (code, len(table.splitlines())) == (0, 2)
    shown = table.splitlines()[1].split()[0]
    assert store.tracker.get_run(shown).info.run_id == newest["run_id"]


def test_a_sweep_stands_for_its_members_where_runs_are_compared(store: Store) -> None:
    found = compare(store.tracker.workspace, [store.sweep.run_id], "student_4", None)
    assert [column.header for column in found.tables[0].columns][1:3] == [
        f"{run.info.run_name} {run.info.run_id[:8]}" for run in store.tracker.members(store.sweep.run_id)
    ]
    members = ", ".join(f"{run.run_id} (demo · seed={seed})" for seed, run in reversed([*enumerate(store.members)]))
    with pytest.raises(UserError) as error:
        store.tracker.pipeline_run(store.sweep.run_id)
    assert str(error.value).startswith(f"run {store.sweep.run_id}: a sweep; give one of its members: ")
    assert sorted(str(error.value).rpartition(": ")[2].split(", ")) == sorted(members.split(", "))


def test_a_run_is_deleted_with_all_below_it_after_it_was_listed(store: Store) -> None:
    before = store.active()
    code, text = magic141("delete", store.sweep.run_id, store=store)
    assert (code, store.active()) == (0, before)
    assert text.splitlines()[-1] == "5 runs in all; --yes deletes them"
    assert magic141("delete", store.sweep.run_id[:12], "--yes", store=store)[0] == 0
    assert store.active() == {store.pipeline.run_id}


def test_parents_come_before_what_is_below_them_whichever_was_named_first(store: Store) -> None:
    sweep, member = store.sweep.run_id, store.members[0].run_id
    for named in ([member, sweep], [sweep, member]):
        found = [run.info.run_id for run in deletion.family(store.tracker, named)]
        assert found[0] == sweep
        assert found.count(member) == 1
        assert len(found) == 5


def test_a_published_model_is_named_before_its_run_is_deleted(store: Store) -> None:
    ref = make_artifact(store.tracker, "publish", "key-published")
    store.tracker.registry.register("film", ref, "candidate", {})
    code, text = magic141("delete", ref.run_id, store=store)
    assert code == 0
    assert "note: models:/film@candidate: published by these runs; it stays usable" in text
    assert "published by" not in magic141("delete", store.pipeline.run_id, store=store)[1]


def test_a_run_that_is_at_work_is_not_deleted(store: Store) -> None:
    working = store.start("demo", "pipeline")
    code, text = magic141("delete", working.run_id, "--yes", store=store)
    assert code == 2
    assert f"run {working.run_id} (demo): is at work; stop it first, or wait" in text
    assert working.run_id in store.active()
    working.close("FINISHED")


def test_of_a_sweep_that_is_at_work_nothing_is_deleted(store: Store) -> None:
    working = store.start("demo · seed=2", "pipeline", store.sweep)
    before = store.active()
    code, text = magic141("delete", store.sweep.run_id, "--yes", store=store)
    assert code == 2
    assert f"run {working.run_id} (demo · seed=2): is at work" in text
    assert store.active() == before
    working.close("FINISHED")
