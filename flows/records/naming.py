"""What a parent run is called, and what its page in MLflow says first."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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
    ends = Counter(last_part(field) for field in {text.partition("=")[0] for text in named})
    settings = ", ".join([*more, *(_short(text, ends) for text in named[-MAX_NAMED:])])
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


def _short(override: str, ends: Mapping[str, int]) -> str:
    """`distill_dmd2.a_weak=0.25` as `a_weak=0.25`, if no other field that ends so was set."""
    field, _, value = without_credentials(override).partition("=")
    end = last_part(field)
    return shortened(f"{end if ends[end] == 1 else field}={value}", MAX_CHARS)


def last_part(field: str) -> str:
    """`a_weak` of `distill_dmd2.a_weak`."""
    return field.rpartition(".")[2]
