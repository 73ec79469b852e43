"""Which code a record says it was made with."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import provenance


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    provenance.git_commit.cache_clear()
    yield
    provenance.git_commit.cache_clear()


@pytest.mark.parametrize(("variable", "commit"), [("4f2a", "4f2a"), ("", None)])
def test_an_image_has_no_repository_but_knows_its_commit(
    variable: str, commit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("MAGIC141_COMMIT", variable)
    assert provenance.git_commit() == commit
    assert provenance.source_tags().get("mlflow.source.git.commit") == commit


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (
            ["/usr/bin/magic141", "run", "c.yaml", "--set", "data.path=s3://a:b@c"],
            "magic141 run c.yaml",
        ),
        (["/usr/bin/prefect", "worker", "start"], "prefect"),
    ],
)
def test_mlflow_is_told_the_command_and_its_user_if_that_has_a_name(
    argv: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    tags = provenance.source_tags()
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"], tags["mlflow.user"]) == (name, "LOCAL", "ada")

    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert "mlflow.user" not in provenance.source_tags()


def test_a_repository_knows_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_described", lambda: "9c1e-dirty")
    monkeypatch.setenv("MAGIC141_COMMIT", "4f2a")
    assert provenance.git_commit() == "9c1e-dirty"


def test_the_cpu_has_its_makers_name_or_at_least_an_architecture(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 2.00GHz\nprocessor\t: 1\nmodel name\t: Fast CPU\n")
    assert provenance.cpu_model(cpuinfo) == "Fast CPU @ 2.00GHz"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 243.75\n")  # as on Arm
    for unnamed in (cpuinfo, tmp_path / "missing"):
        assert provenance.cpu_model(unnamed) in (platform.processor(), platform.machine())
