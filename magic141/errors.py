"""The error of a user's mistake, and helpers that tell errors in one line."""

from __future__ import annotations

from collections.abc import Sequence

MAX_REASON_CHARS = 200  # of a failure, where one line of many tells it


class UserError(ValueError):
    """A mistake in the user's input; its one line names the field or file, the value, what was expected, the remedy.

    The command line prints it without a traceback and exits with code 2; it is never retried.
    """


def first_line(text: str, max_chars: int | None = None) -> str:
    """The first line of an error's text, cut at `max_chars`; empty if it has none."""
    return next(iter(text.strip().splitlines()), "")[:max_chars]


def shortened(text: str, max_chars: int) -> str:
    """The text, or its beginning with a mark that there is more."""
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def first_few(texts: Sequence[str], num: int, between: str = ", ") -> str:
    """The first `num` texts, and how many more there are."""
    more = f" and {len(texts) - num} more" if len(texts) > num else ""
    return f"{between.join(texts[:num])}{more}"
