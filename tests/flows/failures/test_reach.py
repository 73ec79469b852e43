"""Servers that do not answer are named at once."""

from __future__ import annotations

import re
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import HTTPServer
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flows.failures.databases import TIMEOUT_S
from flows.failures.reach import require_servers, trouble
from flows.failures.servers import PREFECT, SERVERS, STORE
from magic141.cluster.address import ray_address_trouble
from magic141.errors import UserError
from tests.http_servers import Handler, serving
from tests.ports import free_port


class Health(Handler):
    """MLflow at /, Prefect at /api, a web page at /page; /secret wants a password; /broken fails; no more is there."""

    def do_GET(self) -> None:
        bodies = {"/health": b"OK", "/api/health": b"true", "/page/health": b"<html>"}
        refusals = {"/secret/health": 401, "/broken/health": 503}
        self.answer(200 if self.path in bodies else refusals.get(self.path, 404), bodies.get(self.path, b""))


@pytest.fixture
def server() -> Iterator[str]:
    with serving(HTTPServer(("127.0.0.1", 0), Health)) as httpd:
        yield f"http://127.0.0.1:{httpd.server_port}"


def own_certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that it signed itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    unsigned = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    file = folder / "server.pem"
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate = unsigned.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    file.write_bytes(key.private_bytes(*private) + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.fixture(autouse=True)
def _no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SERVERS:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("path", ["", "/", "/secret"])
def test_a_server_that_answers_is_fine(server: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server + path)
    require_servers()


@pytest.mark.parametrize("variable", [STORE, PREFECT])
def test_a_certificate_is_the_clients_business(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    httpd = HTTPServer(("127.0.0.1", 0), Health)
    httpd.socket = own_certificate(tmp_path).wrap_socket(httpd.socket, server_side=True)
    with serving(httpd):
        monkeypatch.setenv(variable, f"https://localhost:{httpd.server_port}")
        require_servers()


def test_local_stores_need_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    require_servers()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    with pytest.raises(UserError, match=r"sqlite:////nowhere/mlflow.db: there is no folder /nowhere; correct it"):
        require_servers()
    for value, line in (
        ("sqlite:////proc/x.db", r"cannot write into /proc"),
        ("sqlite://", "expected a file"),
        (f"sqlite:///{tmp_path}", "expected a file"),
        ("http://a b", "URL can't contain control characters"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
        assert line in str(trouble("MLFLOW_TRACKING_URI"))


def test_stores_that_a_plugin_brings_are_mlflows_business(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = EntryPoint("cloud", "cloud.store:Store", "mlflow.tracking_store")
    monkeypatch.setattr(
        "flows.failures.databases.entry_points", lambda group: EntryPoints([plugin]).select(group=group)
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "cloud://region/workspace")
    require_servers()


@pytest.mark.parametrize(("registry", "ok"), [(None, True), ("http://127.0.0.1:1", True), ("http://elsewhere", False)])
def test_a_registry_of_its_own_is_refused(registry: str | None, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fail at a run's last stage."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    if registry:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", registry)
    with pytest.raises(UserError) as refused:
        require_servers()
    assert ("MLFLOW_REGISTRY_URI is set: models are registered where" in str(refused.value)) != ok


@pytest.mark.parametrize("value", ["mlruns", "file:///data/mlruns", "ftp://files/mlflow"])
def test_what_mlflow_cannot_keep_runs_in_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", value)
    with pytest.raises(UserError, match=re.escape(value) + ": MLflow has no such store; expected .*postgresql://"):
        require_servers()


def test_a_database_is_asked_once_and_not_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://ada:s3cret@127.0.0.1:{free_port()}/mlflow")
    started = time.monotonic()
    problem = str(trouble("MLFLOW_TRACKING_URI"))
    assert time.monotonic() - started < TIMEOUT_S
    assert "does not answer" in problem
    assert "refused" in problem
    assert "s3cret" not in problem


def test_a_database_without_its_driver_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+nodriver://ada@127.0.0.1/mlflow")
    assert "does not answer" in str(trouble("MLFLOW_TRACKING_URI"))  # a driver that there is not
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+pymysql://ada@127.0.0.1/mlflow")
    monkeypatch.setitem(sys.modules, "pymysql", None)  # as if it were not installed
    assert "the module pymysql" in str(trouble("MLFLOW_TRACKING_URI"))


def test_every_server_that_is_down_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (STORE, PREFECT):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError) as caught:
        require_servers()
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all("does not answer" in line and "unset" in line for line in lines)


def test_credentials_are_neither_needed_nor_shown(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("http://", "http://ada:s3cret@"))
    require_servers()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:s3cret@127.0.0.1:{free_port()}")
    problem = str(trouble("MLFLOW_TRACKING_URI"))
    assert "does not answer" in problem
    assert "s3cret" not in problem


def test_a_wrong_url_is_told_from_a_dead_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/wrong")
    assert "HTTP 404" in str(trouble("PREFECT_API_URL"))
    assert ":4200/api" in str(trouble("PREFECT_API_URL"))


@pytest.mark.parametrize("variable", [STORE, PREFECT])
def test_the_log_of_a_server_that_fails_says_more(variable: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"{server}/broken")
    assert re.search(r"the server answers with HTTP 503; see its log .* or unset", str(trouble(variable)))


@pytest.mark.parametrize(
    ("variable", "path", "line"),
    [
        (
            "PREFECT_API_URL",
            "/page",
            "something other than expected to /health; expected a URL such as http://HOST:4200/",
        ),
        (
            "MLFLOW_TRACKING_URI",
            "/api",
            "something other than expected to /health; expected a URL such as http://HOST:50",
        ),
    ],
)
def test_another_server_at_the_url_is_told(
    server: str, variable: str, path: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, server + path)
    assert line in str(trouble(variable))
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    assert trouble("PREFECT_API_URL") is None


@pytest.mark.parametrize("variable", [STORE, PREFECT])
def test_a_url_without_its_scheme_is_told(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "127.0.0.1:4200/api")
    assert "127.0.0.1:4200/api: not a URL; expected one such as http://HOST:" in str(trouble(variable))


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "head.ray.svc:6379", "[fd00::1]:6379", "auto", "local"])
def test_an_address_that_ray_takes_is_fine(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_address_trouble() is None


def test_a_ray_cluster_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening.getsockname()[1]}")
        require_servers()
    with pytest.raises(
        UserError, match=r"^RAY_ADDRESS = 127\.0\.0\.1:\d+: does not answer \(.*refused\); start the cluster"
    ):
        require_servers()
    for here in ("auto", "local"):
        monkeypatch.setenv("RAY_ADDRESS", here)
        require_servers()


@pytest.mark.parametrize(
    ("address", "line"),
    [
        (
            "http://10.0.0.1:8265",
            "RAY_ADDRESS = http://10.0.0.1:8265: expected HOST:PORT such as 10.0.0.1:6379, or auto",
        ),
        ("10.0.0.1", "RAY_ADDRESS = 10.0.0.1: expected HOST:PORT"),
        ("ray://head:10001", "run this on a node of the cluster with RAY_ADDRESS=auto or HOST:6379"),
    ],
)
def test_an_address_that_cannot_work_is_told(address: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as caught:
        require_servers()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ray_client_is_refused_where_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from magic141.cluster.session import ensure_ray

    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match="Ray Client cannot run Ray Data's actors"):
        ensure_ray()
