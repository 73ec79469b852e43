"""Which failures the same command goes on from: those of a run that had begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

BEGUN = "magic141: the run had begun"


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
