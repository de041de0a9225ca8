"""The built-in world: a small seeded language with ten families of problems a program checks."""

from .families import CONSTANT_ANSWER_ACCURACY, FAMILIES, check
from .streams import ALPHABET, STREAMS, WORLD_VERSION, records

__all__ = [
    "ALPHABET",
    "CONSTANT_ANSWER_ACCURACY",
    "FAMILIES",
    "STREAMS",
    "WORLD_VERSION",
    "check",
    "records",
]
