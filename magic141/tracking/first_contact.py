"""The first request to a tracking server: one that answers nothing but errors is said at once, not after minutes."""

from __future__ import annotations

from functools import cache

from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from magic141.frozen import UserError
from magic141.urls import without_credentials

ENDPOINT = "/api/2.0/mlflow/experiments/search"
NUM_RETRIES, TIMEOUT_S = 1, 7


@cache
def require_answer(uri: str) -> None:
    """Asks a server once per process; all later requests keep MLflow's patience, to outlive the server's restart.

    Raises:
        UserError: it answers with an error of its own; a health check knows nothing of its database.
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
    if answer.status_code >= 500:
        raise UserError(
            f"MLFLOW_TRACKING_URI = {without_credentials(uri)}: the server answers with HTTP {answer.status_code}; see "
            "its log (its database may be down) and start it again, or unset MLFLOW_TRACKING_URI to work without"
        )
