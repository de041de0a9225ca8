"""What is said of a key that the schema lacks: its name here, or the nearest one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from pipelines.errors import did_you_mean
from pipelines.recipe.foreign_keys import FOREIGN, FORMER
from pipelines.recipe.schema import Config

# Stands for a name of the user's choice, such as that of a source.
ANY_NAME = "<name>"
# Of a key's sentence, what its full name in a section takes the place of.
_CALLED = re.compile(r"It is called '(\w+)' here(, in (a|each) section(: for example \S+=4)?)?")


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
    """The end of the sentence `unknown key 'name'`, given the keys of its section."""
    section, _, key = name.rpartition(".")
    key, siblings = key.replace("-", "_"), list(siblings)
    if key in siblings:
        return did_you_mean(key, [key])
    new = FORMER.get(key, "")
    if new and new.partition(".")[0] in siblings:
        return f". Did you mean '{section}.{new}'?" if section else f". Did you mean '{new}'?"
    for sentences in FOREIGN.values():
        if key in sentences:
            said = sentences[key]
            if section and (called := _CALLED.match(said)) and called[1] in siblings:
                said = f"It is called '{section}.{called[1]}' here{said[called.end() :]}"
            return f". {said}"
    top = section.partition(".")[0]
    near = [whole for whole in schema_keys() if top and whole.startswith(f"{top}.")]
    # Keys of other sections that have this name, those of the same top section before all.
    for keys in (near, schema_keys()):
        there = [f"'{whole}'" for whole in keys if f".{whole}".endswith(f".{new or key}")][:5]
        if there:
            *others, last = there
            listed = f"{', '.join(others)} or {last}" if others else last
            return f". Did you mean {listed}?"
    if difflib.get_close_matches(key, siblings, n=1):
        return did_you_mean(key, siblings)
    below = {whole.rpartition(".")[2]: whole for whole in near}
    if close := difflib.get_close_matches(key, below, n=1):
        return f". Did you mean '{below[close[0]]}'?"
    return did_you_mean(name, schema_keys())
