"""Runs with everything that a report can show, and a browser to look at them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from inputs import HOSTILE, with_inputs


@pytest.fixture(scope="session")
def analyzed_run(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny flywheel with everything that a report can show of a flywheel."""
    return with_inputs(tiny_run.root, tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="session")
def hostile_run(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with script tags in tokens, domains and questions."""
    return with_inputs(tiny_run.root, tmp_path_factory.mktemp("report") / "hostile", HOSTILE)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    with Browser(found, tmp_path_factory.mktemp("profile")) as opened:
        yield opened
