"""Completion markers: a file next to others that says they are complete, with a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedFile
from pipelines.run_dir.paths import read_json, write_text

# Key of the checksum over all other keys. Markers of early versions have none.
_CHECKSUM = "checksum"


def write_marker(path: Path, values: Mapping[str, Any]) -> None:
    """Write a marker atomically, with a checksum of its values."""
    plain = json.loads(json.dumps(values))
    write_text(path, json.dumps(plain | {_CHECKSUM: _checksum(plain)}, indent=1) + "\n")


def read_marker(path: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """The values of a marker that has keys of these types.

    Raises:
        DamagedFile: the marker is incomplete or was changed after it was written.
    """
    values = read_json(path, needs=tuple(types))
    checksum = values.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(values):
        raise DamagedFile(f"{path} is damaged: its checksum does not match.")
    for key, kind in types.items():
        if type(values[key]) is not kind:
            raise DamagedFile(f"{path} is damaged: {key} is not of type {kind.__name__}.")
    return values


def _checksum(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
