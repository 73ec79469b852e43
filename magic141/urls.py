"""Removes credentials from URLs before they are shown."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

# `user:password@`. Databases also take a password with a slash in it, which in http would be host:port/path.
_USERINFO = re.compile(
    r"(https?://)[^/?#\s'\"]*@|((?!https?:)\b[a-z][\w+.-]*://)[^:/\s'\"]*(?::[^\s'\"]*)?@", re.IGNORECASE
)
_SECRET_FIELD = re.compile(r"(?i)(?<=[?&])([\w.-]*(?:password|passwd|token|secret|signature|key)=)[^&#\s'\"]+")


def without_credentials(text: str) -> str:
    """The text with `user:password@` removed from every URL, and passwords in queries replaced by `***`."""
    return _SECRET_FIELD.sub(r"\1***", _USERINFO.sub(r"\1\2", text))


def settle_credentials(variable: str, *targets: str) -> None:
    """Moves the credentials of the http(s) URL in an environment variable to variables that its client also reads.

    Clients quote their URL in errors, tags and logs, but never these variables. Those already set are kept.

    Args:
        variable: holds the URL, such as MLFLOW_TRACKING_URI.
        targets: the variables for user and password, or one for `user:password`.
    """
    found = re.match(r"(https?://)([^/?#@]*)@(.*)", os.environ.get(variable, ""), re.DOTALL)
    if not found:
        return
    scheme, userinfo, rest = found.groups()
    name, _, secret = (unquote(part) for part in userinfo.partition(":"))
    for target, value in zip(targets, (name, secret) if len(targets) == 2 else (f"{name}:{secret}",), strict=True):
        os.environ.setdefault(target, value)
    os.environ[variable] = f"{scheme}{rest}"
