"""Reward of the built-in world: its own rule for what counts as the answer."""

from __future__ import annotations

from pipelines import world


def reward(completion: str, answer: str) -> float:
    """1.0 where the world accepts the completion, else 0.0."""
    return float(world.check(completion, answer))
