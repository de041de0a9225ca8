"""How the schema declares a key: default, help text, bounds."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    result: bool = True,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a key of the recipe.

    Args:
        result: False leaves the key out of the identity of a stage.
        low, high: smallest and largest allowed value.
        above, below: exclusive bounds.
    """
    bounds = {"low": low, "above": above, "high": high, "below": below}
    metadata = {"help": help, "result": result, "bounds": bounds}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)
