"""Tells how to resume a failed run: by the same command, if need be after correcting a mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from magic141.errors import UserError

BEGUN = "magic141: the run had begun"
CORRECT, RESUME = "correct this, then", "to resume"


class Outage(UserError):
    """A fault of the machine or of a server, not of the input: once it is over, the same command resumes the run."""


@contextmanager
def marking_resumable() -> Iterator[None]:
    """Marks errors that are raised inside as resumable."""
    try:
        yield
    except BaseException as error:
        error.add_note(BEGUN)
        raise


def is_resumable(error: BaseException) -> bool:
    """Whether the run had begun, so that a second attempt can reuse its results; a second Ctrl-C follows a first."""
    before = error.__context__
    return BEGUN in getattr(error, "__notes__", ()) or (before is not None and is_resumable(before))


def is_mistake(error: BaseException) -> bool:
    """Whether the same command would fail again until something is corrected; an error's `is_mistake` decides first."""
    known = isinstance(error, UserError) and not isinstance(error, Outage)
    return bool(getattr(error, "is_mistake", known))


def way_on(error: BaseException) -> str:
    """The words before the command: correct something first, or just resume."""
    return CORRECT if is_mistake(error) else RESUME
