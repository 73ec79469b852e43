"""Checks with one request that a tracking server works, so that a broken one is reported at once."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from urllib.parse import urlsplit

from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from magic141.errors import UserError
from magic141.urls import without_credentials

ENDPOINT = "/api/2.0/mlflow/experiments/search"
NUM_RETRIES, TIMEOUT_S = 1, 7


@cache
def require_answer(uri: str) -> None:
    """Asks a server once per process; later requests keep MLflow's long retries, to survive the server's restart.

    Raises:
        UserError: if it refuses, or answers with a server error (a health check would not notice a lost database).
    """
    if not uri.startswith(("http://", "https://")):
        return
    answer = http_request(
        get_default_host_creds(uri),
        ENDPOINT,
        "GET",
        params={"max_results": 1},
        max_retries=NUM_RETRIES,
        timeout=TIMEOUT_S,
        raise_on_status=False,
        respect_retry_after_header=False,
    )
    if problem := _problem(uri, answer.status_code, answer.text):
        raise UserError(f"MLFLOW_TRACKING_URI = {without_credentials(uri)}: the server {problem}")


def _problem(uri: str, status: int, text: str) -> str | None:
    """What is wrong with an answer, and the remedy."""
    if status == HTTPStatus.FORBIDDEN and "host header" in text.lower():
        return (
            f"does not know itself under the name {urlsplit(uri).hostname}; start it with MLFLOW_SERVER_ALLOWED_HOSTS "
            "that has this name and port"
        )
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return (
            f"refuses the credentials (HTTP {status}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN"
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return (
            f"answers with HTTP {status}; see its log (its database may be down) and start it again, or unset "
            "MLFLOW_TRACKING_URI to work without"
        )
    return None
