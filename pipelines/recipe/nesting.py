"""Limits on the depth and size of a YAML text, checked before it is loaded.

The recursion of the C loader crashes the process on a text that is nested too deep, and aliases of
aliases grow without bound when they are copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

MAX_DEPTH = 50
MAX_NODES = 100_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def too_large(text: str) -> str:
    """Why a YAML text is too deep or too large for a recipe; empty if it is within the limits.

    Raises:
        yaml.YAMLError: the text is not YAML.
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
                return f"alias *{event.anchor} refers to a value that contains it"
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: total - before} if anchor else {}
        if len(open_nodes) > MAX_DEPTH:
            return f"it is nested deeper than {MAX_DEPTH} levels"
        if total > MAX_NODES:
            return f"it has more than {MAX_NODES} values"
    return ""


def values_of(text: str) -> Any:
    """The plain values of a YAML text of limited size.

    Raises:
        yaml.YAMLError: the text is not YAML.
        ValueError: it is too deep or too large.
    """
    if why := too_large(text):
        raise ValueError(why)
    return yaml.load(text, Loader=_LOADER)


def _events(text: str) -> Iterator[Any]:
    yield from yaml.parse(text, Loader=_LOADER)
