"""Rewards: how a completion is judged against a gold answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipelines.errors import UserError

Judge = Callable[[str, str], float]


def judge(kind: str) -> Judge:
    """The reward of a kind: `judge(kind)(completion, answer)` is 1.0 for right, 0.0 for wrong.

    Args:
        kind: `world`, `math`, `exact` or `code`, as in a source's `reward`. For `code` the answer
            is a program's tests.

    Raises:
        UserError: another kind.
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
        raise UserError(f"reward '{kind}': choose world, math, exact or code")
    return reward


def judge_all(kind: str, judged: Sequence[tuple[str, str]]) -> list[float]:
    """The reward of each (completion, answer); programs and mathematics several at a time.

    Raises:
        UserError: no such kind, or `code` where the sandbox is not available.
    """
    if kind == "code":
        from pipelines.rewards.code import rewards

        return rewards(judged)
    if kind == "math":
        from pipelines.rewards.math import rewards

        return rewards(judged)
    reward = judge(kind)
    return [reward(completion, answer) for completion, answer in judged]
