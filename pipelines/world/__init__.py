"""The built-in world: a small seeded language with ten families of problems a program checks."""

from .families import CHANCE, FAMILIES, check
from .streams import ALPHABET, STREAMS, WORLD_VERSION, records

__all__ = ["ALPHABET", "CHANCE", "FAMILIES", "STREAMS", "WORLD_VERSION", "check", "records"]
