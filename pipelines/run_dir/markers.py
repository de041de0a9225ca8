"""Markers: the file that says that what lies beside it is whole, and whether it is so itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedFile
from pipelines.run_dir.paths import read_json, write_text

# Over all other keys. A marker without it is from a version that wrote none.
_CHECKSUM = "checksum"


def write_marker(path: Path, values: Mapping[str, Any]) -> None:
    """Write a marker, whole or not at all, with a checksum of its own."""
    plain = json.loads(json.dumps(values))
    write_text(path, json.dumps(plain | {_CHECKSUM: _checksum(plain)}, indent=1) + "\n")


def read_marker(path: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """The values of a marker.

    Args:
        types: of the keys that must be there.

    Raises:
        DamagedFile: it is not what was written.
    """
    values = read_json(path, needs=tuple(types))
    checksum = values.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(values):
        raise DamagedFile(f"{path} is damaged: its checksum is another one.")
    for key, kind in types.items():
        if type(values[key]) is not kind:
            raise DamagedFile(f"{path} is damaged: {key} is no {kind.__name__}.")
    return values


def _checksum(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
