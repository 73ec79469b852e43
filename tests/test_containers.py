"""The image, and the servers and the cluster of containers: small commits, nothing public, the pods' own commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

from magic141.evaluation.config import EvaluateConfig
from magic141.evaluation.scores import VBENCH

INFRA = Path(__file__).parents[1] / "infra"


def test_the_image_gets_what_it_copies() -> None:
    """The build's context leaves everything out but what is named; a COPY of anything else fails."""
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    kept = {line[1:] for line in (INFRA.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept
    assert all((INFRA.parent / name).exists() for name in copied)


def test_the_image_installs_extras_that_exist() -> None:
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    known = tomllib.loads((INFRA.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= known.keys()
    assert set(EvaluateConfig().vbench_dimensions) & {dimension.key for dimension in VBENCH}
    assert "bench" in extras.split(",")  # else a default run there would lack a score that it asks for


def test_another_commit_keeps_the_layer_of_the_dependencies() -> None:
    """It has gigabytes, which every node would fetch again."""
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    before = [line.split() for line in lines[: _line(lines, "-r pyproject.toml")] if line.startswith("COPY")]
    assert before == [["COPY", "pyproject.toml", "constraints.txt", "./"]]
    assert _line(lines, "--no-deps -e .") > max(_line(lines, f"COPY {name}") for name in ("magic141", "tasks", "flows"))


def _line(lines: list[str], text: str) -> int:
    (number,) = [number for number, line in enumerate(lines) if text in line]
    return number


def test_the_cluster_of_containers_runs_the_image_as_pods_do() -> None:
    services = yaml.safe_load((INFRA / "cluster.yaml").read_text())["services"]
    head, run = services["head"], services["run"]
    assert head["build"]["dockerfile"] == "infra/Dockerfile"
    assert f"ARG EXTRAS={head['build']['args']['EXTRAS'].split(':-')[1][:-1]}" in (INFRA / "Dockerfile").read_text()
    template = (INFRA / "kubernetes" / "base-job-template.json").read_text()
    (joins,) = re.findall(r"ray start --address=\S+ --num-cpus=0 --num-gpus=0", run["command"][2].replace("$$", "$"))
    assert joins in template.replace('\\"', '"')
    assert run["environment"]["RAY_ADDRESS"] == "head:6379"


def test_one_service_builds_the_image_and_the_other_waits_for_it() -> None:
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    users = {name: service for name, service in services.items() if service["image"] == "magic141-servers"}
    assert sorted(users) == ["mlflow", "prefect"]
    (builder,) = [name for name, service in users.items() if "build" in service]
    (other,) = users.keys() - {builder}
    assert users[other]["pull_policy"] == "never"
    assert users[other]["depends_on"].keys() == {"postgres", builder}


def test_the_prefect_server_has_a_place_for_its_pages() -> None:
    """It copies them where they are installed unless told otherwise, where its user may not write: `/` answers 404."""
    service = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]["prefect"]
    assert "USER server" in service["build"]["dockerfile_inline"]
    assert service["environment"]["PREFECT_SERVER_UI_STATIC_DIRECTORY"].startswith("/tmp/")


def test_containers_are_published_on_loopback_only_and_have_no_password_of_their_own() -> None:
    text = (INFRA / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    ports = [port for service in services.values() for port in service["ports"]]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all("healthcheck" in service for service in services.values())
    passwords = re.findall(r"(?:POSTGRES_PASSWORD: |magic141:)(\S+)", text)
    assert len(passwords) == 3
    assert all(password.startswith("${POSTGRES_PASSWORD") for password in passwords)
