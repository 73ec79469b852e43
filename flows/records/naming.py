"""What a parent run is called, and what its page in MLflow says first."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from magic141.errors import shortened
from magic141.frozen import NAMES_ONLY
from magic141.urls import without_credentials

if TYPE_CHECKING:
    from magic141.artifacts.references import ArtifactRef

TAG_OVERRIDES, TAG_DESCRIPTION = "magic141.overrides", "mlflow.note.content"
MAX_NAMED, MAX_CHARS = 4, 40
MAX_NAME_CHARS = 250  # as many as MLflow's column in PostgreSQL takes
RUN_ID_CHARS = 8  # that are shown of a run's id; every command takes them for it
SEPARATOR = " · "


def run_name(name: str, kind: str, overrides: Sequence[str] = ()) -> str:
    """The config's name, what kind of run it is unless a pipeline, and what was set: `demo · a_weak=0.25`.

    Names that several sections have are given with them, if they were set in more than one.
    """
    kinds = ["eval"] if kind == "evaluation" else []
    named = [text for text in overrides if text.partition("=")[0] not in NAMES_ONLY]  # shown elsewhere
    more = [f"{len(named) - MAX_NAMED} more"] if len(named) > MAX_NAMED else []  # the last say what is new
    shared = shared_ends(text.partition("=")[0] for text in named)
    settings = ", ".join([*more, *(_short(text, shared) for text in named[-MAX_NAMED:])])
    said = SEPARATOR.join([name, *kinds, *([settings] if settings else [])])
    return shortened(said, MAX_NAME_CHARS)


def overrides_tag(overrides: Sequence[str]) -> dict[str, str]:
    """All that was set, as a command takes it."""
    words = (word for text in overrides for word in ("--set", without_credentials(text)))
    return {TAG_OVERRIDES: shlex.join(words)} if overrides else {}


def description(
    headline: str,
    again: str,
    experiment_id: str,
    refs: Mapping[str, ArtifactRef],
    made: Collection[str],
) -> str:
    """Markdown for the run's page: what came out, how to run it again, and the run that made each stage's result."""
    rows = [
        f"| {stage} | [{ref.run_id[:RUN_ID_CHARS]}](#/experiments/{experiment_id}/runs/{ref.run_id}) | "
        f"{'made' if stage in made else 'reused'} |"
        for stage, ref in refs.items()
    ]
    first = [f"**{headline}**"] if headline else []
    return "\n".join([*first, "", f"Again: `{again}`", "", "| stage | made by run | here |", "|---|---|---|", *rows])


def _short(override: str, shared: Collection[str]) -> str:
    field, _, value = without_credentials(override).partition("=")
    return shortened(f"{short_field(field, shared)}={value}", MAX_CHARS)


def shared_ends(fields: Iterable[str]) -> frozenset[str]:
    """The last parts of names that several fields have."""
    ends = Counter(field.rpartition(".")[2] for field in set(fields))
    return frozenset(end for end, num in ends.items() if num > 1)


def short_field(field: str, shared: Collection[str]) -> str:
    """`a_weak` of `distill_dmd2.a_weak`, unless another field ends so, too."""
    end = field.rpartition(".")[2]
    return field if end in shared else end
