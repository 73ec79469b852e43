"""How a run that had begun and failed goes on: by the same command, after a mistake once that is corrected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from magic141.errors import UserError

BEGUN = "magic141: the run had begun"
CORRECT, RESUME = "correct this, then", "to resume"


class Outage(UserError):
    """A fault of the machine or of a server, no mistake in the input: the same command goes on once it is over."""


@contextmanager
def marking_resumable() -> Iterator[None]:
    """Marks what is raised inside."""
    try:
        yield
    except BaseException as error:
        error.add_note(BEGUN)
        raise


def is_resumable(error: BaseException) -> bool:
    """Whether something had been done that a second attempt finds."""
    return BEGUN in getattr(error, "__notes__", ())


def is_mistake(error: BaseException) -> bool:
    """Whether the same command fails again until something is corrected; an error may say so itself."""
    known = isinstance(error, UserError) and not isinstance(error, Outage)
    return bool(getattr(error, "is_mistake", known))


def way_on(error: BaseException) -> str:
    """What to do before the same command goes on."""
    return CORRECT if is_mistake(error) else RESUME
