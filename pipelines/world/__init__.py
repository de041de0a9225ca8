"""The built-in world: a generated task suite of ten problem families with answers to check."""

from .families import CONSTANT_ANSWER_ACCURACY, FAMILIES, check
from .streams import ALPHABET, STREAMS, WORLD_VERSION, records

__all__ = [
    "ALPHABET", "CONSTANT_ANSWER_ACCURACY", "FAMILIES", "STREAMS", "WORLD_VERSION", "check",
    "records",
]  # fmt: skip
