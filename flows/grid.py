"""The members of a sweep: every combination of some fields' values, or a list of settings."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from magic141.config import PipelineConfig, load_config, missing_sources
from magic141.errors import UserError

MAX_MEMBERS = 200


@dataclass(frozen=True)
class Member:
    """One run of a sweep: field -> value, as `--set` takes them."""

    settings: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        """Its settings by the last part of each field's name."""
        return ", ".join(f"{field.rpartition('.')[2]} {value}" for field, value in self.settings) or "as it is"

    @property
    def overrides(self) -> list[str]:
        """As `--set` takes them."""
        return [f"{field}={value}" for field, value in self.settings]


def members_of(vary: Sequence[str], listed: Sequence[str]) -> list[Member]:
    """The grid of `vary` and after it the listed members, each once.

    Args:
        vary: `FIELD=VALUE,VALUE,…` each; every combination of them is a member.
        listed: `FIELD=VALUE FIELD=VALUE …` each; one member.

    Raises:
        UserError: nothing varies, too many members, or a text that cannot be read.
    """
    axes = [_axis(text) for text in vary]
    grid = [Member(tuple(settings)) for settings in itertools.product(*axes)] if axes else []
    members = list(dict.fromkeys([*grid, *(_listed(text) for text in listed)]))
    if len(members) < 2:
        raise UserError(
            "sweep: expected two or more members; use --vary distill_dmd2.a_weak=0,0.25,0.5, or several --member"
        )
    if len(members) > MAX_MEMBERS:
        raise UserError(f"sweep: {len(members)} members; expected at most {MAX_MEMBERS}; vary fewer values")
    return members


def check_members(config: Path, members: Sequence[Member], overrides: Sequence[str]) -> list[PipelineConfig]:
    """Every member's config, valid and with its sources in place, before the first one runs."""
    configs = []
    for member in members:
        try:
            values = load_config(config, [*overrides, *member.overrides])
        except UserError as error:
            raise UserError(f"member {member.label}: {error}") from None
        if problems := list(missing_sources(values)):
            raise UserError("\n".join(problems))
        configs.append(values)
    return configs


def number_at(config: PipelineConfig, field: str) -> float | None:
    """The number that `field` has in `config`, for the axis of a chart."""
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _axis(text: str) -> list[tuple[str, str]]:
    field, equals, values = text.partition("=")
    try:
        parsed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        parsed = []
    if not equals or not field.strip() or not parsed:
        raise UserError(f"--vary {text}: expected FIELD=VALUE,VALUE,… such as distill_dmd2.a_weak=0,0.25,0.5")
    return [(field.strip(), _flow(value)) for value in parsed]


def _listed(text: str) -> Member:
    try:
        pairs = [word.partition("=") for word in shlex.split(text)]
    except ValueError:  # a quote or an escape that does not end
        pairs = []
    if not pairs or not all(field and equals for field, equals, _ in pairs):
        raise UserError(
            f"--member {text}: expected FIELD=VALUE FIELD=VALUE …, each quote closed, such as "
            "'seed=1 distill_dmd2.a_weak=0'"
        )
    return Member(tuple((field, value) for field, _, value in pairs))


def _flow(value: Any) -> str:
    """A value on one line, as YAML reads it back."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
