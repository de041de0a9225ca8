"""Parts of an evaluation that are done, each in a file of its own: a start after a kill goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.run_dir.paths import write_text


def cache_path(folder: Path, name: str) -> Path:
    """The file of a part, whatever signs its name has."""
    return folder / f"{quote(name, safe='')}.json"


def cached(path: Path | None, make: Callable[[], Any], *, writes: bool) -> Any:
    """What a file holds; else what is made, as JSON gives it back, and kept there from now on.

    Args:
        path: None: nothing is kept.
        writes: whether this rank is the one that writes. All ranks read.
    """
    if path is not None and path.is_file():
        return json.loads(path.read_text("utf-8"))
    text = json.dumps(make())
    if writes and path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return json.loads(text)
