"""Cache of finished parts of an evaluation, one file each, so that a killed run can resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.run_dir.paths import write_text


def cache_path(folder: Path, name: str) -> Path:
    """The cache file of a part; its name may contain any character."""
    return folder / f"{quote(name, safe='')}.json"


def cached(path: Path | None, make: Callable[[], Any], *, writes: bool) -> Any:
    """Return the content of a cache file, or call `make` and cache its value.

    The value passes through JSON either way, so a fresh value equals one read from the file. All
    ranks read the file, and the rank that `writes` makes it; without a path, nothing is cached.
    """
    if path is not None and path.is_file():
        return json.loads(path.read_text("utf-8"))
    text = json.dumps(make())
    if writes and path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return json.loads(text)
