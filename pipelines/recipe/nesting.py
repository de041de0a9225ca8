"""Limits on the depth and size of a YAML text, checked before it is loaded.

The recursion of the C loader crashes the process on a text that is nested too deep, and aliases of
aliases grow without bound when they are copied.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_DEPTH = 50
MAX_NODES = 100_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_limits(text: str) -> None:
    """
    Raises:
        yaml.YAMLError: the text is not YAML.
        ValueError: it is too deep or too large.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_nodes):
                raise ValueError(f"alias *{event.anchor} refers to a value that contains it")
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: total - before} if anchor else {}
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if total > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} values")


def values_of(text: str) -> Any:
    """The plain values of a YAML text; raises as `check_limits` does."""
    check_limits(text)
    return yaml.load(text, Loader=_LOADER)
