"""Rewards: judge a completion against a gold answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipelines.errors import UserError

Judge = Callable[[str, str], float]


def judge(kind: str) -> Judge:
    """Return the reward function of a kind: it maps (completion, answer) to 1.0 or 0.0.

    Args:
        kind: `world`, `math`, `exact` or `code`, as in a source's `reward`. For `code` the answer
            is the tests that the program must pass.

    Raises:
        UserError: the kind is unknown.
    """
    if kind == "world":
        from pipelines.rewards.world import reward
    elif kind == "math":
        from pipelines.rewards.math import reward
    elif kind == "exact":
        from pipelines.rewards.exact import reward
    elif kind == "code":
        from pipelines.rewards.code import reward
    else:
        raise UserError(f"unknown reward '{kind}': choose world, math, exact or code")
    return reward


def judge_all(kind: str, judged: Sequence[tuple[str, str]]) -> list[float]:
    """Compute the reward of each (completion, answer); kinds `code` and `math` run in parallel.

    Raises:
        UserError: the kind is unknown, or it is `code` and the sandbox is not available.
    """
    if kind == "code":
        from pipelines.rewards.code import rewards

        return rewards(judged)
    if kind == "math":
        from pipelines.rewards.math import rewards

        return rewards(judged)
    reward = judge(kind)
    return [reward(completion, answer) for completion, answer in judged]
