"""The members of a sweep: all combinations of some fields' values, and listed settings."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from flows.records.naming import shared_ends, short_field
from magic141.config import PipelineConfig, load_config, missing_sources
from magic141.config.files import load_yaml, shown
from magic141.errors import UserError
from magic141.evaluation.variants import list_variants, student_variant
from tasks.pipeline import stages_between

MAX_MEMBERS = 200


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        settings: pairs (field, value) as `--set` takes them.
        shared_ends: last parts of names that several fields of the sweep have.
    """

    settings: tuple[tuple[str, str], ...]
    shared_ends: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def label(self) -> str:
        """Its settings, with only the last part of each field's name where that tells the fields apart."""
        named = (f"{short_field(name, self.shared_ends)} {value}" for name, value in self.settings)
        return ", ".join(named) or "as configured"

    def without(self, name: str) -> Member:
        """Its other settings."""
        return replace(self, settings=tuple(pair for pair in self.settings if pair[0] != name))

    @property
    def overrides(self) -> list[str]:
        """Its settings as `FIELD=VALUE`, as `--set` takes them."""
        return [f"{field}={value}" for field, value in self.settings]


@dataclass(frozen=True)
class CheckedMember(Member):
    """A member that can run.

    Attributes:
        config: its whole config.
    """

    config: PipelineConfig = field(kw_only=True, compare=False)


def members_of(vary: Sequence[str], listed: Sequence[str]) -> list[Member]:
    """The grid of `vary`, followed by the listed members, without duplicates.

    Args:
        vary: each `FIELD=VALUE,VALUE,…`; every combination of values is a member.
        listed: each `FIELD=VALUE FIELD=VALUE …`, which is one member.

    Raises:
        UserError: if there are fewer than two or too many members, or one cannot be parsed.
    """
    axes = [_axis(text) for text in vary]
    _refuse_twice("--vary", [axis[0][0] for axis in axes])
    grid = [Member(tuple(settings)) for settings in itertools.product(*axes)] if axes else []
    members = _told_apart(dict.fromkeys([*grid, *(_listed(text) for text in listed)]))
    if len(members) < 2:
        again = f"{members[0].label} alone, however often; " if len(grid) + len(listed) > 1 else ""
        raise UserError(
            f"sweep: {again}expected two or more members; use --vary distill_dmd2.a_weak=0,0.25,0.5, or several "
            "--member"
        )
    if len(members) > MAX_MEMBERS:
        raise UserError(f"sweep: {len(members)} members; expected at most {MAX_MEMBERS}; vary fewer values")
    return members


def _told_apart(members: Iterable[Member]) -> list[Member]:
    """The members with labels that name every field by as much as tells it from the sweep's others."""
    found = list(members)
    shared = shared_ends(name for member in found for name, _ in member.settings)
    return [replace(member, shared_ends=shared) for member in found]


def check_members(config: Path, members: Sequence[Member], overrides: Sequence[str]) -> list[CheckedMember]:
    """Validates all members' configs, and that their sources exist, before the first one runs."""
    checked = []
    for member in members:
        if "workspace" in dict(member.settings):
            raise UserError(f"member {member.label}: all members of a sweep share a workspace; give it as --workspace")
        try:
            values = load_config(config, [*overrides, *member.overrides])
        except UserError as error:
            raise UserError(f"member {member.label}: {error}") from None
        if problems := list(missing_sources(values)):
            raise UserError("\n".join(problems))
        checked.append(CheckedMember(member.settings, member.shared_ends, config=values))
    return checked


def row_to_compare(variant: str | None, until: str, members: Sequence[CheckedMember]) -> str:
    """The row of the score table that a sweep up to the stage `until` compares: `variant`, or the first one's student.

    Raises:
        UserError: if there is no such stage, or a member that is scored will have no such row.
    """
    chosen = variant or student_variant(members[0].config.distill_dmd2).name
    if "evaluate" not in (stage.name for stage in stages_between(None, until)):
        return chosen
    for member in members:
        names = [known.name for known in list_variants(member.config.generate, member.config.distill_dmd2)]
        if chosen not in names:
            raise UserError(
                f"--variant {chosen}: member {member.label} has no such variant; it has {', '.join(names)}; give one "
                "that all members have"
            )
    return chosen


def _axis(text: str) -> list[tuple[str, str]]:
    field, equals, values = text.partition("=")
    where, remedy = f"--vary {shown(text)}", "expected FIELD=VALUE,VALUE,… such as distill_dmd2.a_weak=0,0.25,0.5"
    parsed = load_yaml(f"[{values}]", where, remedy)
    if not equals or not field.strip() or not parsed:
        raise UserError(f"{where}: {remedy}")
    return [(field.strip(), _flow(value)) for value in parsed]


def _listed(text: str) -> Member:
    try:
        pairs = [word.partition("=") for word in shlex.split(text)]
    except ValueError:  # an unclosed quote or escape
        pairs = []
    if not pairs or not all(field and equals for field, equals, _ in pairs):
        raise UserError(
            f"--member {text}: expected FIELD=VALUE FIELD=VALUE …, each quote closed, such as "
            "'seed=1 distill_dmd2.a_weak=0'"
        )
    _refuse_twice(f"--member {text}", [field for field, _, _ in pairs])
    return Member(tuple((field, value) for field, _, value in pairs))


def _refuse_twice(where: str, fields: Sequence[str]) -> None:
    if twice := next((field for field in fields if fields.count(field) > 1), None):
        raise UserError(f"{where}: {twice} is given twice, and only one value would count; give all its values at once")


def _flow(value: Any) -> str:
    """A value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
