"""Registered models: aliases, promotions, the way back, and a store that cannot say."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from magic141.errors import UserError
from magic141.tracking import Tracker
from magic141.tracking.registry import Registry
from tests.tracking.made import make_artifact


def test_registered_model_resolves_by_alias_and_version(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "publish", "key-f")
    assert [tracker.registry.register("net", ref, "candidate", {}) for _ in range(2)] == ["1", "1"]
    other = make_artifact(tracker, "publish", "key-g")
    assert tracker.registry.register("net", other, "candidate", {}) == "2"
    assert tracker.registry.resolve("models:/net@candidate") == other
    assert [tracker.registry.resolve(f"models:/net/{version}") for version in (1, 2)] == [ref, other]
    mistakes = {"models:/net@x": "models:/net@candidate", "models:/a/1": "not in"}
    mistakes |= dict.fromkeys(("net", "models:/net/1.0", f"models:/net/{10**9}"), "expected models:/")
    for uri, line in mistakes.items():
        with pytest.raises(UserError, match=line):
            tracker.registry.resolve(uri)


def test_the_names_of_what_runs_have_published(tracker: Tracker) -> None:
    first, second = (make_artifact(tracker, "publish", f"key-n{number}") for number in range(2))
    assert tracker.registry.names_of([first.run_id]) == []
    tracker.registry.promote("named", "champion", tracker.registry.register("named", first, "candidate", {}))
    tracker.registry.register("named", second, "candidate", {})
    assert tracker.registry.names_of([first.run_id]) == ["models:/named@champion"]
    assert tracker.registry.names_of([second.run_id, "x"]) == ["models:/named@candidate"]


def test_a_model_that_another_run_has_just_created_is_no_error(tracker: Tracker) -> None:
    tracker.registry.client.create_registered_model("race")
    assert tracker.registry.register("race", make_artifact(tracker, "publish", "key-race"), "candidate", {}) == "1"


def test_a_version_is_of_the_run_that_made_it_and_has_the_tags_of_its_last_registration(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "publish", "key-tags")
    for seed in ("1", "2"):
        tracker.registry.register("tagged", ref, "candidate", {"seed": seed})
    version = tracker.registry.version("models:/tagged@candidate")
    assert (version.run_id, version.tags["seed"]) == (ref.run_id, "2")


def test_promotions_are_remembered_and_rolled_back_in_order(tracker: Tracker) -> None:
    registry = tracker.registry
    for number in range(3):
        registry.register("film", make_artifact(tracker, "publish", f"key-film{number}"), "candidate", {})
        registry.promote("film", "champion", str(number + 1), forced=number == 2)
    assert [(p.version, p.action) for p in registry.history("film", "champion")] == [
        ("1", "promote"),
        ("2", "promote"),
        ("3", "forced"),
    ]
    assert registry.rollback("film", "champion") == "2"
    assert registry.rollback("film", "champion") == "1"
    found = registry.alias_version("film", "champion")
    assert found is not None
    assert str(found.version) == "1"
    with pytest.raises(UserError, match="no earlier promotion"):
        registry.rollback("film", "champion")
    assert len(registry.history("film", "champion")) == 5
    assert registry.alias_version("film", "nobody") is None
    assert registry.alias_version("no such model", "champion") is None
    with pytest.raises(UserError, match="model nowhere: not in the registry"):
        registry.history("nowhere", "champion")


def test_a_champion_that_was_set_by_hand_is_rolled_back_to(tracker: Tracker) -> None:
    registry = tracker.registry
    for number in range(3):
        registry.register("scene", make_artifact(tracker, "publish", f"key-scene{number}"), "candidate", {})
    registry.client.set_registered_model_alias("scene", "champion", "1")
    registry.promote("scene", "champion", "2")
    registry.client.set_registered_model_alias("scene", "champion", "3")
    assert [registry.rollback("scene", "champion") for _ in range(2)] == ["2", "1"]
    assert [(p.version, p.action) for p in registry.history("scene", "champion")] == [
        ("1", "outside"),
        ("2", "promote"),
        ("3", "outside"),
        ("2", "rollback"),
        ("1", "rollback"),
    ]


def test_a_version_that_was_promoted_twice_is_left_by_two_rollbacks(tracker: Tracker) -> None:
    registry = tracker.registry
    for number, version in enumerate(("1", "2", "2")):
        registry.register("twice", make_artifact(tracker, "publish", f"key-twice{number}"), "candidate", {})
        registry.promote("twice", "champion", version)
    assert [registry.rollback("twice", "champion") for _ in range(2)] == ["2", "1"]


def test_a_rollback_that_was_interrupted_goes_to_the_same_version_when_it_is_repeated(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = tracker.registry
    for number in range(3):
        registry.register("torn", make_artifact(tracker, "publish", f"key-torn{number}"), "candidate", {})
        registry.promote("torn", "champion", str(number + 1))
    for write in ("set_registered_model_tag", "set_registered_model_alias"):
        with monkeypatch.context() as patch:
            patch.setattr(registry.client, write, Mock(side_effect=ConnectionError))
            with pytest.raises(ConnectionError):
                registry.rollback("torn", "champion")
    assert registry.rollback("torn", "champion") == "2"
    found = registry.alias_version("torn", "champion")
    assert found is not None
    assert str(found.version) == "2"


def test_a_rollback_passes_over_versions_that_were_deleted(tracker: Tracker) -> None:
    registry = tracker.registry
    for number in range(4):
        registry.register("cut", make_artifact(tracker, "publish", f"key-cut{number}"), "candidate", {})
        registry.promote("cut", "champion", str(number + 1))
    for version in ("2", "3"):
        registry.client.delete_model_version("cut", version)
    assert registry.rollback("cut", "champion") == "1"
    with pytest.raises(UserError, match="no earlier promotion"):
        registry.rollback("cut", "champion")


def test_a_store_that_refuses_is_not_a_missing_run_or_model(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise MlflowException("failed with error code 401 != 200")

    for name in ("get_run", "get_model_version", "get_registered_model"):
        monkeypatch.setattr(MlflowClient, name, refuse)
    for ask in (
        lambda: tracker.get_run("1f"),
        lambda: tracker.registry.version("models:/film/1"),
        lambda: tracker.registry.history("film", "champion"),
    ):
        with pytest.raises(MlflowException, match="401"):
            ask()


def test_a_failing_store_is_not_a_missing_champion(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> None:
        raise MlflowException("the database is locked")  # INTERNAL_ERROR

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", fail)
    with pytest.raises(MlflowException, match="locked"):
        tracker.registry.alias_version("film", "champion")


def test_the_newest_moves_are_kept_and_lead_back_as_far_as_they_go(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magic141.tracking.registry.MAX_PROMOTIONS", 2)
    registry = tracker.registry
    for number in range(3):
        registry.register("reel", make_artifact(tracker, "publish", f"key-reel{number}"), "candidate", {})
        registry.promote("reel", "champion", str(number + 1))
    assert [move.version for move in registry.history("reel", "champion")] == ["2", "3"]
    assert registry.rollback("reel", "champion") == "2"
    with pytest.raises(UserError, match="no earlier promotion"):
        registry.rollback("reel", "champion")
    registry.promote("reel", "champion", "1")
    assert registry.rollback("reel", "champion") == "2"


def test_a_model_that_somebody_else_registered_is_named(tracker: Tracker) -> None:
    tracker.client.create_registered_model("foreign")
    tracker.client.create_model_version("foreign", source="/nowhere")
    with pytest.raises(UserError, match="models:/foreign/1: was not published by magic141; there are: "):
        tracker.registry.resolve("models:/foreign/1")


def test_a_password_in_the_address_of_the_store_is_not_in_what_it_says_of_an_unknown_model(tracker: Tracker) -> None:
    with pytest.raises(UserError, match=r"not in the registry http://.*host:5000") as error:
        Registry(tracker.client, "http://ada:s3cret@host:5000").resolve("models:/nobody/1")
    assert "s3cret" not in str(error.value)


def test_the_finished_runs_that_have_an_artifact_are_found_in_every_experiment_newest_first(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "train", "key-judged", text="judged")
    maker = tracker.get_run(ref.run_id).data.tags["mlflow.parentRunId"]
    other_team = Tracker(tracker.workspace, "other team")
    reusing, another = (other_team.start_parent(name, "evaluation", {}) for name in ("reusing", "another"))
    other_team.set_artifact(reusing.run_id, ref, reused=True)
    copied = ref.model_copy(update={"digest": "another", "uri": f"/copies/{ref.digest}"})
    other_team.set_artifact(another.run_id, copied, reused=False)
    another.close("FINISHED")
    assert [run.info.run_id for run in tracker.registry.runs_with(ref)] == [maker], "the other is not finished"
    reusing.close("FINISHED")
    assert [run.info.run_id for run in tracker.registry.runs_with(ref)] == [reusing.run_id, maker]
