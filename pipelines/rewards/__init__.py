"""Rewards: how a completion is judged against a gold answer."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.errors import UserError

Judge = Callable[[str, str], float]


def judge(kind: str) -> Judge:
    """The reward of a kind: `judge(kind)(completion, answer)` is 1.0 for right, 0.0 for wrong.

    Args:
        kind: `world`, `math` or `exact`, as in a source's `reward`.

    Raises:
        UserError: another kind.
    """
    if kind == "world":
        from pipelines.rewards.world import reward
    elif kind == "math":
        from pipelines.rewards.math import reward
    elif kind == "exact":
        from pipelines.rewards.exact import reward
    else:
        raise UserError(f"reward '{kind}': choose world, math or exact")
    return reward
