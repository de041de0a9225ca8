"""What inspection finds before a stage starts."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.data import inspection
from pipelines.data.inspection import inspect_source
from pipelines.errors import UserError
from pipelines.recipe.schema import SourceConfig

KEY = "sft.sources.gsm8k"


def refusal(source: SourceConfig, root: Path, use: Any = "documents") -> str:
    with pytest.raises(UserError) as caught:
        inspect_source(KEY, source, root, use)
    message = str(caught.value)
    assert message.startswith(f"{KEY}: ")
    return message


def test_facts_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "y"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "z"}')
    facts = inspect_source(KEY, SourceConfig(path="*.jsonl"), tmp_path, "documents")
    parts = [(tmp_path / name).read_bytes() for name in ("a.jsonl", "b.jsonl")]
    assert facts.files == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert facts.bytes == sum(map(len, parts))
    assert facts.records == 3
    joined = b"".join(hashlib.sha256(part).digest() for part in parts)
    assert facts.sha256 == hashlib.sha256(joined).hexdigest()


def test_missing_path_says_where_to_set_it(tmp_path: Path) -> None:
    for path in ("gsm8k/train.jsonl", "gsm8k/*.jsonl"):
        message = refusal(SourceConfig(path=path), tmp_path)
        assert str(tmp_path / path) in message
        assert "REMIT_DATA" in message and "data_root" in message
        assert message.startswith(f"{KEY}: ") and "source '" not in message
    assert "needs a path" in refusal(SourceConfig(), tmp_path)
    assert "is a folder" in refusal(SourceConfig(path=str(tmp_path)), tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("line", "reason"),
    [(b'{"text": "x"', "not valid JSON"), (b'["x"]', "a list"), (b'{"text": "\xff"}', "utf-8")],
)
def test_broken_line_is_numbered(tmp_path: Path, line: bytes, reason: str, zipped: bool) -> None:
    content = b'{"text": "x"}\n' * 1000 + line + b"\n" + b'{"text": "x"}\n'
    path = tmp_path / ("a.jsonl.gz" if zipped else "a.jsonl")
    path.write_bytes(gzip.compress(content) if zipped else content)
    message = refusal(SourceConfig(path=path.name), tmp_path)
    assert f"{path}, line 1001: " in message
    assert reason in message


def test_empty_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "bad.parquet").write_text("nothing like it")
    whole = gzip.compress(os.urandom(10_000).hex().encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:2000])
    assert "is empty" in refusal(SourceConfig(path="empty.jsonl"), tmp_path)
    assert "holds no record" in refusal(SourceConfig(path="blank.jsonl"), tmp_path)
    parquet = SourceConfig(kind="parquet", path="bad.parquet")
    assert "not a readable Parquet file" in refusal(parquet, tmp_path)
    assert "not a complete gzip file" in refusal(SourceConfig(path="cut.jsonl.gz"), tmp_path)


def test_expressions_and_templates(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q", "answer": "7"}))

    def said(use: Any, **keys: Any) -> str:
        return refusal(SourceConfig(path="a.jsonl", **keys), tmp_path, use)

    assert "strip: '(' is not a regular expression" in said("documents", strip="(")
    assert "answer_pattern '####' has no group" in said("documents", answer_pattern="####")
    assert "in two braces: {{ question }}" in said("documents", text="{question}")
    assert "line 1: template '{{ text }}'" in said("documents")
    assert "'text' is undefined; the record has: answer, question" in said("documents")
    assert "'response' is undefined" in said("conversations", prompt="{{ question }}")
    assert "'chosen' is undefined" in said("pairs", prompt="{{ question }}")
    assert "'response' is undefined" in said("pairs", prompt="{{ question }}", near_miss=True)
    problem = {"prompt": "{{ question }}", "answer_pattern": "#### (.*)"}
    assert "does not match the answer '7'" in said("problems", **problem)


def test_fit_use_passes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q", "answer": "7"}))
    source = SourceConfig(
        path="a.jsonl", prompt="{{ question }}", response="{{ answer }}", near_miss=True
    )
    for use in ("conversations", "pairs", "problems"):
        inspect_source(KEY, source, tmp_path, use)  # type: ignore[arg-type]


def test_empty_gold_answer(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "q", "answer": " "}))
    assert "line 1: the gold answer is empty" in refusal(
        SourceConfig(path="a.jsonl"), tmp_path, "problems"
    )


def test_where_selects_the_checked_record(tmp_path: Path) -> None:
    rows = [{"level": "easy"}, {"level": "hard", "text": "x"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    inspect_source(
        KEY, SourceConfig(path="a.jsonl", filter={"level": "hard"}), tmp_path, "documents"
    )
    message = refusal(SourceConfig(path="a.jsonl", filter={"level": "none"}), tmp_path)
    assert "no record passes filter = {'level': 'none'}" in message


def test_world(tmp_path: Path) -> None:
    message = refusal(SourceConfig(kind="world", stream="pretrian"), tmp_path)
    assert "Did you mean 'pretrain'?" in message
    uses = [("pretrain", "documents"), ("sft", "conversations"), ("dpo", "pairs")]
    uses += [("rlvr", "problems"), ("eval", "problems")]
    found = {
        inspect_source(KEY, SourceConfig(kind="world", stream=s), tmp_path, use).sha256  # type: ignore[arg-type]
        for s, use in uses
    }
    assert len(found) == len(uses)


def test_hub(tmp_path: Path) -> None:
    # The library that reads hub data sets takes a folder where a name is meant.
    folder = tmp_path / "data-set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "x", "level": 1}\n')
    (folder / "test.jsonl").write_text('{"text": "y", "level": 2}\n')
    train, test, dev = (
        SourceConfig(kind="hub", path=str(folder), split=split)
        for split in ("train", "test", "dev")
    )
    one, other = (inspect_source(KEY, source, tmp_path, "documents") for source in (train, test))
    assert one.sha256 != other.sha256
    message = refusal(dev, tmp_path)
    assert "split dev" in message and "cannot be loaded" in message
    message = refusal(train, tmp_path, "problems")
    assert "split train" in message and "'prompt' is undefined; the record has: level" in message


def test_a_field_that_every_record_must_have(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "1", "level": "x"}, {"prompt": "b", "answer": "2"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = SourceConfig(path="a.jsonl")
    cache = tmp_path / "facts.json"
    assert inspect_source(KEY, source, tmp_path, "problems", cache).records == 2
    with pytest.raises(UserError, match=r"line 2: the record has no field 'level'; it has prompt"):
        inspect_source(KEY, source, tmp_path, "problems", cache, needs="level")
    inspect_source(KEY, replace(source, limit=1), tmp_path, "problems", cache, needs="level")


@pytest.mark.parametrize("old, new", [('"records"', '"recordz"'), ('"size"', '"sise"'), ("{", "[")])
def test_a_damaged_cache_is_thrown_away(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    source, cache = SourceConfig(path="a.jsonl"), tmp_path / "facts.json"
    first = inspect_source(KEY, source, tmp_path, "documents", cache)
    whole = cache.read_text()
    assert old in whole
    cache.write_text(whole.replace(old, new))
    assert inspect_source(KEY, source, tmp_path, "documents", cache) == first
    assert cache.read_text() == whole


def test_second_inspection_reads_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    cache = tmp_path / "cache" / "facts.json"
    source = SourceConfig(path="a.jsonl")
    first = inspect_source(KEY, source, tmp_path, "documents", cache)
    scanned: list[Path] = []
    scan = inspection._scan
    monkeypatch.setattr(inspection, "_scan", lambda p, s: scanned.append(p) or scan(p, s))
    assert inspect_source(KEY, source, tmp_path, "documents", cache) == first
    assert scanned == []
    path.write_text('{"text": "longer"}\n')
    assert inspect_source(KEY, source, tmp_path, "documents", cache).sha256 != first.sha256
    cache.write_text('{"cut')
    inspect_source(KEY, source, tmp_path, "documents", cache)
    assert scanned == [path, path]


def test_inspection_is_free_of_torch(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    code = f"""
import sys
from pipelines.data import inspection, records, sources
from pipelines.recipe.schema import SourceConfig as Source
inspection.inspect_source("k", Source(path="a.jsonl"), {str(tmp_path)!r}, "documents")
inspection.inspect_source("k", Source(kind="world", stream="sft"), ".", "conversations")
assert not {{"torch", "transformers", "datasets"}} & set(sys.modules)
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
