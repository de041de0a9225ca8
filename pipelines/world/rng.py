"""Random numbers of the built-in world: a portable generator and a stable hash."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def digest(text: str) -> int:
    """Hash `text` to a 64-bit number, the same in every process and Python version."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


# The content of a problem before it is written as text; its form depends on the family.
State = tuple[Any, ...]


class Dice(random.Random):
    """A random generator that gives the same values in every Python version.

    Python guarantees this for `random()` with an integer seed, but not for `choice` or `shuffle`.
    All methods here therefore use only `random()`.
    """

    @classmethod
    def named(cls, name: str) -> Dice:
        """A generator seeded by the stable hash of `name`."""
        return cls(digest(name))

    def below(self, limit: int) -> int:
        """A whole number from 0 to `limit` - 1, all equally likely."""
        return int(self.random() * limit)

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included, all equally likely."""
        return low + int(self.random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One of `items`, all equally likely."""
        return items[int(self.random() * len(items))]

    def deal(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different places of `items` in random order, as a new list."""
        left = list(items)
        return [left.pop(int(self.random() * len(left))) for _ in range(count)]
