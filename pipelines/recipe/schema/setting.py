"""How the schema declares a key: default, help text, bounds."""

from __future__ import annotations

from dataclasses import field
from functools import partial
from typing import Any


def setting(default: Any, help: str, *, result: bool = True, **bounds: float) -> Any:
    """Declare a key of the recipe.

    Args:
        result: False leaves the key out of the identity of a stage.
        bounds: `low` and `high`, the smallest and largest value; `above` and `below`, exclusive.
    """
    metadata = {"help": help, "result": result, "bounds": bounds}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


# A key that cannot change what a stage computes: launch, logging, paths, checkpoint interval.
runtime_setting = partial(setting, result=False)
