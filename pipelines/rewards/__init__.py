"""Rewards: judge a completion against a gold answer."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.errors import UserError


def judge_all(kind: str, judged: Sequence[tuple[str, str]]) -> list[float]:
    """Compute the reward, 1.0 or 0.0, of each (completion, answer).

    Args:
        kind: `world`, `math`, `exact` or `code`, as in a source's `reward`. For `code` the answer
            is the tests that the program must pass. `math` and `code` run in parallel.

    Raises:
        UserError: the kind is unknown, or it is `code` and the sandbox is not available.
    """
    if kind == "code":
        from pipelines.rewards.code import rewards

        return rewards(judged)
    if kind == "math":
        from pipelines.rewards.math import rewards

        return rewards(judged)
    if kind == "exact":
        from pipelines.rewards.exact import reward
    elif kind == "world":
        from pipelines.world import check as reward
    else:
        raise UserError(f"unknown reward '{kind}': choose world, math, exact or code")
    return [float(reward(completion, answer)) for completion, answer in judged]
