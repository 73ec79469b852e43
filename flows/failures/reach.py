"""Checks at once that the servers named in the environment answer, instead of after minutes of retries."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Sequence
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import urlopen

from flows.failures.databases import TIMEOUT_S, database_trouble
from flows.failures.servers import RAY, SERVERS, STORE
from magic141.cluster.address import ray_address_trouble, ray_cluster
from magic141.errors import UserError
from magic141.urls import without_credentials

REGISTRY = "MLFLOW_REGISTRY_URI"
_EXAMPLES = {"PREFECT_API_URL": "http://HOST:4200/api", "MLFLOW_TRACKING_URI": "http://HOST:5000"}
_HEALTHY = {"PREFECT_API_URL": b"true", "MLFLOW_TRACKING_URI": b"OK"}  # other servers have a /health, too
_REFUSED = (401, 403)  # it answers; credentials are checked by its client


def require_servers(variables: Sequence[str] = SERVERS) -> None:
    """Raises UserError with a line for every variable whose server does not answer or whose value is invalid."""
    problems = [problem for variable in variables if (problem := trouble(variable))]
    if STORE in variables and os.environ.get(REGISTRY, os.environ.get(STORE)) != os.environ.get(STORE):
        problems.append(f"{REGISTRY} is set: models are registered where their runs are, in {STORE}; unset it")
    if problems:
        raise UserError("\n".join(problems))


def trouble(variable: str) -> str | None:
    """What is wrong with the server that a variable names; None if it answers or is not on the network."""
    if variable == RAY:
        return ray_address_trouble() or _ray_is_silent()
    value = os.environ.get(variable, "")
    url = without_credentials(value)
    if not url.startswith(("http://", "https://")):
        return _not_a_url(variable, value)
    try:
        with urlopen(f"{url.rstrip('/')}/health", timeout=TIMEOUT_S) as answer:
            healthy = answer.read(len(_HEALTHY[variable]) + 1).strip() == _HEALTHY[variable]
            return None if healthy else _no_such_server(variable, url, "something other than expected")
    except HTTPError as error:
        if error.code in _REFUSED:
            return None
        return (_fails if error.code >= 500 else _no_such_server)(variable, url, f"HTTP {error.code}")
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):  # it answers; the clients have their own certificates
            return None
        return f"{variable} = {url}: does not answer ({reason}); start the server, or unset {variable} to work without"


def _ray_is_silent() -> str | None:
    """The problem with a cluster that does not answer, which Ray would try to reach for minutes."""
    host, _, port = ray_cluster().rpartition(":")
    if not host:
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        return f"{RAY} = {host}:{port}: does not answer ({error}); start the cluster, or unset {RAY} for a local Ray"
    return None


def _not_a_url(variable: str, value: str) -> str | None:
    """The problem with a value that is not an http URL; MLflow also accepts databases, Prefect does not."""
    host_and_port = re.match(r"[\w.-]+:\d+(/|$)", value)
    if value and (host_and_port or variable == "PREFECT_API_URL"):
        return f"{variable} = {without_credentials(value)}: not a URL; expected one such as {_EXAMPLES[variable]}"
    return database_trouble(variable, value) if value else None


def _fails(variable: str, url: str, answer: str) -> str:
    return (
        f"{variable} = {url}: the server answers with {answer}; see its log (its database may be down) and start it "
        f"again, or unset {variable} to work without"
    )


def _no_such_server(variable: str, url: str, answer: str) -> str:
    example = _EXAMPLES[variable]
    return f"{variable} = {url}: something answers, but with {answer} to /health; expected a URL such as {example}"
