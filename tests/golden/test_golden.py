"""What is computed stays as it was recorded: `record.py` says when and how to record anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from traces import FILE, RUNS, machine, trace

# Of a stage on another processor; later steps amplify what the first ones round.
FIRST_STEPS = 3
LOOSE = 1e-3


@pytest.fixture(scope="module", params=RUNS)
def traces(
    request: pytest.FixtureRequest, remit: Any, tiny_run: Any, tmp_path_factory: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trace that was recorded and that of now."""
    recorded = json.loads(FILE.read_text())
    if request.param == "tiny":
        return recorded["tiny"], trace(tiny_run.root)
    run: Path = tmp_path_factory.mktemp("golden") / "run"
    remit(*RUNS[request.param], "--run-dir", run, check=True)
    return recorded[request.param], trace(run)


def differences(recorded: Any, found: Any, where: str = "") -> list[str]:
    if isinstance(recorded, dict) and isinstance(found, dict):
        lists = [
            differences(recorded.get(key), found.get(key), f"{where}/{key}")
            for key in recorded.keys() | found.keys()
        ]
        return sorted(line for lines in lists for line in lines)
    return [] if recorded == found else [f"{where}: recorded {recorded}, found {found}"]


def test_every_step_is_as_it_was_recorded(traces: tuple[dict[str, Any], dict[str, Any]]) -> None:
    recorded, found = traces
    made_on = json.loads(FILE.read_text())["machine"]
    assert recorded.keys() == found.keys()
    if made_on == machine(threads=1):
        assert differences(recorded, found) == []
        return
    for stage, logged in recorded.items():
        for key in {"loss", "grad_norm"} & logged.keys():
            ours, theirs = (t[stage][key][:FIRST_STEPS] for t in (found, recorded))
            assert ours == pytest.approx(theirs, rel=LOOSE, abs=1e-6), (
                f"{stage}, {key} of the first {FIRST_STEPS} steps: recorded on {made_on}, this is "
                f"{machine(threads=1)}, where only {LOOSE:g} is asked for"
            )
