"""How deep and how large a YAML text is, known before it is made into values.

The C loader's recursion ends the process on a text that nests too deep, and aliases of aliases
grow without bound when they are copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

MAX_DEPTH = 50
MAX_NODES = 100_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def too_large(text: str) -> str:
    """Why a YAML text is more than any recipe needs; empty where it is not.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in _events(text):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_nodes):
                return f"alias *{event.anchor} is inside of what it names"
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: total - before} if anchor else {}
        if len(open_nodes) > MAX_DEPTH:
            return f"it nests deeper than {MAX_DEPTH} levels"
        if total > MAX_NODES:
            return f"it has more than {MAX_NODES} values"
    return ""


def values_of(text: str) -> Any:
    """The plain values of a YAML text of bounded size.

    Raises:
        yaml.YAMLError: it is no YAML.
        ValueError: it is too deep or too large.
    """
    if why := too_large(text):
        raise ValueError(why)
    return yaml.load(text, Loader=_LOADER)


def _events(text: str) -> Iterator[Any]:
    yield from yaml.parse(text, Loader=_LOADER)
