"""Whether the servers that the environment names answer: said at once, not after minutes of retries."""

from __future__ import annotations

import os
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

from magic141.frozen import UserError

SERVERS = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")
TIMEOUT_S = 10
_REFUSED = (401, 403)  # it answers; credentials are the client's business


def require_servers() -> None:
    """Raises UserError with a line for every server that is named and does not answer."""
    problems = [problem for variable in SERVERS if (problem := trouble(variable))]
    if problems:
        raise UserError("\n".join(problems))


def trouble(variable: str) -> str | None:
    """What is wrong with the server that an environment variable names; none if it answers or is not on the network."""
    url = _without_credentials(os.environ.get(variable, ""))
    if not url.startswith(("http://", "https://")):
        return None
    try:
        with urlopen(f"{url.rstrip('/')}/health", timeout=TIMEOUT_S):
            return None
    except HTTPError as error:
        return None if error.code in _REFUSED else f"{variable} = {url}: {_no_such_server(variable, error.code)}"
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"{variable} = {url}: does not answer ({reason}); start the server, or unset {variable} to work without"


def _without_credentials(url: str) -> str:
    """The URL without `user:password@`: it is shown to people, and /health needs none."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _no_such_server(variable: str, code: int) -> str:
    example = "http://HOST:4200/api" if variable == "PREFECT_API_URL" else "http://HOST:5000"
    return f"something answers, but with HTTP {code} to /health; expected a URL such as {example}"
