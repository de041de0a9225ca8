"""Reward for problems of the built-in world, by the world's rule for extracting the answer."""

from __future__ import annotations

from pipelines import world


def reward(completion: str, answer: str) -> float:
    """1.0 if the world accepts the completion, else 0.0."""
    return float(world.check(completion, answer))
