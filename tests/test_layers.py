"""The floors of the house: packages in order, and no import that goes up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
import draw_packages as packages

# Lowest first. A module imports its own package and packages of lower floors, nothing else.
FLOORS = [
    ["errors", "quantities", "world"],
    ["machine", "recipe"],
    ["objectives", "run_dir"],
    ["models", "rewards"],
    ["data"],
    ["evals", "training", "worker"],
    ["analysis", "plan"],
    ["stages", "comparison", "launch"],
    ["report"],
    ["remit_cli"],
]
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}


@pytest.mark.parametrize("module", [m for m in packages.MODULES if m != "pipelines"])
def test_imports_go_down(module: str) -> None:
    own = packages.room(module)
    used = {packages.room(u) for u in packages.imports(module)} - {own, "pipelines"}
    assert [name for name in used if FLOOR[name] >= FLOOR[own]] == []


def test_at_most_ten_floors_and_two_modules_outside_of_packages() -> None:
    assert len(FLOORS) <= 10
    loose = [m for m in packages.MODULES if m.count(".") == 1 and m.startswith("pipelines.")]
    folders = {m for m in loose if packages.MODULES[m].stem == "__init__"}
    assert set(loose) - folders == {"pipelines.errors", "pipelines.quantities"}


def test_no_file_imports_itself_by_others() -> None:
    files = {m: set(packages.imports(m)) - {m} for m in packages.MODULES}
    packages.floors(files)  # raises where there is a circle


def test_what_a_rank_runs_and_what_starts_it_meet_in_files_alone() -> None:
    """The launcher side knows stages by name; a rank knows nothing of plans."""
    graph = packages.arrows()
    inside = {"stages", "training", "analysis", "objectives", "worker"}
    for outside in ("plan", "comparison", "launch", "report", "remit_cli"):
        assert not graph[outside] & inside
    for rank in ("worker", "stages", "training", "analysis"):
        assert not graph[rank] & {"plan", "comparison", "launch", "report", "remit_cli"}


def test_the_drawing_is_that_of_the_code() -> None:
    assert packages.DRAWING.read_text() == packages.drawing(), "run python docs/draw_packages.py"
