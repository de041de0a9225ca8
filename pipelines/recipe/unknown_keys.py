"""What is said of a key that the schema lacks: its name here, or the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from pipelines.errors import did_you_mean
from pipelines.recipe.foreign_keys import FOREIGN, FORMER
from pipelines.recipe.schema import Config

# Stands for a name of the user's choice, such as that of a source.
ANY_NAME = "<name>"


@cache
def schema_keys() -> tuple[str, ...]:
    """Every section and key of the schema, from the top; `<name>` for a name of one's choice."""
    return tuple(_below(Config, ""))


def _below(section: Any, prefix: str) -> list[str]:
    hints, found = get_type_hints(section), []
    for f in fields(section):
        found.append(f"{prefix}{f.name}")
        of, entries = hints[f.name], get_args(hints[f.name])
        if is_dataclass(of):
            found += _below(of, f"{prefix}{f.name}.")
        elif len(entries) == 2 and is_dataclass(entries[1]):
            found += _below(entries[1], f"{prefix}{f.name}.{ANY_NAME}.")
    return found


def hint(name: str, siblings: Iterable[str]) -> str:
    """The end of the sentence `unknown key 'name'`.

    Args:
        name: the whole key.
        siblings: the keys of its section.
    """
    section, _, key = name.rpartition(".")
    key, siblings = key.replace("-", "_"), list(siblings)
    if key in siblings:
        return did_you_mean(key, [key])
    new = FORMER.get(key, "")
    if new and new.partition(".")[0] in siblings:
        return f". Did you mean '{section}.{new}'?" if section else f". Did you mean '{new}'?"
    for sentences in FOREIGN.values():
        if key in sentences:
            return f". {sentences[key]}"
    if there := _elsewhere(new or key, section):
        return f". Did you mean {_one_of(there)}?"
    if difflib.get_close_matches(key, siblings, n=1):
        return did_you_mean(key, siblings)
    top = section.partition(".")[0]
    below = {w.rpartition(".")[2]: w for w in schema_keys() if top and w.startswith(f"{top}.")}
    if near := difflib.get_close_matches(key, below, n=1):
        return f". Did you mean '{below[near[0]]}'?"
    return did_you_mean(name, schema_keys())


def _elsewhere(key: str, section: str) -> list[str]:
    """The keys of other sections that have this name; those below the same top one before all."""
    found = [whole for whole in schema_keys() if f".{whole}".endswith(f".{key}")]
    top = section.partition(".")[0]
    return [whole for whole in found if top and whole.startswith(f"{top}.")] or found


def _one_of(names: list[str]) -> str:
    """Quoted names; of many, the first of them."""
    quoted = [f"'{name}'" for name in names[:5]]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
