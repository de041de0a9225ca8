"""The ledger: append-only, durable, and readable after a crash in the middle of a line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipelines.run_dir import ledger


def stages(path: Path) -> list[tuple[str, str]]:
    return [(entry["event"], entry["stage"]) for entry in ledger.read(path)]


def test_lines_in_order_with_time_and_facts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    before = time.time()
    ledger.append(path, "start", "base", inputs={})
    returned = ledger.append(path, "finish", "base", loss=1.5)
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert (first["event"], first["stage"], first["inputs"]) == ("start", "base", {})
    assert second == returned and second["loss"] == 1.5
    assert before - 0.001 <= first["time"] <= second["time"] <= time.time() + 0.001
    assert list(ledger.read(path)) == [first, second]


def test_no_ledger_is_an_empty_one(tmp_path: Path) -> None:
    assert list(ledger.read(tmp_path / "ledger.jsonl")) == []


@pytest.mark.parametrize("torn", ['{"time": 1, "event": "fin', '{"time": 1}', "3", "\x00\x00"])
def test_a_torn_last_line_is_ignored(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, "start", "base")
    with path.open("a") as stream:
        stream.write(torn)
    assert stages(path) == [("start", "base")]


def test_append_after_a_torn_line_starts_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, "start", "base")
    with path.open("ab") as stream:
        stream.write('{"event": "finish", "stage": "caf\u00e9'.encode()[:-1])
    ledger.append(path, "resume", "base")
    ledger.append(path, "finish", "base")
    assert stages(path) == [("start", "base"), ("resume", "base"), ("finish", "base")]
    assert len(path.read_text(errors="replace").splitlines()) == 4


def test_what_was_written_is_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, "start", "base")
    before = path.read_bytes()
    ledger.append(path, "finish", "base", words="line\nbreak")
    assert path.read_bytes().startswith(before)
    assert path.read_bytes().count(b"\n") == 2


def test_a_fact_that_is_no_json_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ValueError, match=r"JSON"):
        ledger.append(path, "finish", "base", loss=float("nan"))
    assert not path.exists()
