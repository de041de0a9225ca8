"""Sources, templates, near misses and typed views, on made files."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data import records
from pipelines.data.near_miss import near_miss
from pipelines.data.sources import open_source, prompt_hash
from pipelines.errors import UserError
from pipelines.recipe.schema import SourceConfig
from pipelines.rewards.exact import reward


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def shared_data() -> Path:
    named = os.environ.get("REMIT_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"


# --- sources ---


def test_order_is_seeded_complete_and_new_each_epoch(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"n": i} for i in range(1000)])

    def order(seed: int, epoch: int, name: str = "a") -> list[int]:
        opened = open_source(name, SourceConfig(path="a.jsonl"), tmp_path, seed)
        return [record["n"] for _, record in opened.iterate(epoch)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(0, 0)), tuple(order(0, 1)), tuple(order(1, 0))}) == 3
    assert sorted(order(0, 1)) == list(range(1000))
    assert order(0, 0) != list(range(1000))


def test_records_keep_their_line_exactly(tmp_path: Path) -> None:
    rows = [{"t": "x\u2028y\x85z"}, {"t": "2020-01-01", "n": 18}, {"n": 2.5, "m": None}, {"n": "7"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "a[1] b.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    opened = open_source("a", SourceConfig(path="a[1] b.jsonl"), tmp_path, 0)
    assert sorted(map(str, opened)) == sorted(map(str, rows))
    found = {index: opened.locate(index) for index, _ in opened.iterate()}
    assert sorted(found) == [0, 2, 4, 6]
    assert found[4].endswith("a[1] b.jsonl, line 5")


def test_limit_counts_file_order_after_where(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"n": i, "odd": bool(i % 2)} for i in range(100)])
    source = SourceConfig(path="a.jsonl", filter={"odd": "True"}, limit=3)
    assert sorted(r["n"] for r in open_source("a", source, tmp_path, 0)) == [1, 3, 5]
    source = SourceConfig(path="a.jsonl", limit=3)
    assert sorted(r["n"] for r in open_source("a", source, tmp_path, 0)) == [0, 1, 2]


def test_glob_is_sorted_and_locate_names_the_file(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"n": name}] * 2)
    opened = open_source("s", SourceConfig(path="*.jsonl"), tmp_path, 0)
    places = {index: (record["n"], opened.locate(index)) for index, record in opened.iterate()}
    assert [places[i][0] for i in range(4)] == ["a", "a", "b", "b"]
    assert places[3][1] == f"{tmp_path / 'b.jsonl'}, line 2"


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"n": 1}])
    assert list(open_source("a", SourceConfig(path="a.jsonl"), tmp_path, 0)) == [{"n": 1}]
    write_jsonl(path, [{"n": 2}])
    assert list(open_source("a", SourceConfig(path="a.jsonl"), tmp_path, 0)) == [{"n": 2}]


def test_gz_parquet_and_text(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    with gzip.open(tmp_path / "z.jsonl.gz", "wt") as stream:
        stream.write('{"n": 1}\n{"n": 2}\n')
    table = pyarrow.table({"n": [1, 2], "l": [[{"b": "x"}], []]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    (tmp_path / "t.txt").write_text("a\nb\n\nc\n\n\n\nd\n")

    def read(kind: Any, path: str) -> list[str]:
        return sorted(map(str, open_source("s", SourceConfig(kind=kind, path=path), tmp_path, 0)))

    assert read("jsonl", "z.jsonl.gz") == ["{'n': 1}", "{'n': 2}"]
    assert read("parquet", "p.parquet") == ["{'n': 1, 'l': [{'b': 'x'}]}", "{'n': 2, 'l': []}"]
    assert read("text", "t.txt") == sorted(str({"text": t}) for t in ("a\nb", "c", "d"))


def test_hash_range_halves_are_disjoint_and_cover(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"Question {i}"} for i in range(2000)])

    def half(low: float, high: float) -> set[str]:
        source = SourceConfig(path="a.jsonl", hash_range=[low, high])
        return {r["prompt"] for r in open_source("a", source, tmp_path, 0)}

    low, high = half(0.0, 0.5), half(0.5, 1.0)
    assert not low & high
    assert len(low | high) == 2000
    assert 900 < len(low) < 1100


@given(st.text())
def test_prompt_hash_is_blind_to_case_and_space(text: str) -> None:
    assert 0 <= prompt_hash(text) < 1
    assert prompt_hash(f"  {text}\n") == prompt_hash(text)
    assert prompt_hash("Two  Words") == prompt_hash("two\nwords")


def test_no_record_left(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"k": "x"}])
    with pytest.raises(UserError, match="no record passes its filters"):
        open_source("a", SourceConfig(path="a.jsonl", filter={"k": "y"}), tmp_path, 0)


def test_world_limit_repeats_the_same_records_in_a_new_order(tmp_path: Path) -> None:
    source = SourceConfig(kind="world", stream="sft", limit=50)
    opened = open_source("w", source, tmp_path, 0)
    first, second = (list(opened.iterate(epoch)) for epoch in (0, 1))
    assert first != second
    assert sorted(map(str, first)) == sorted(map(str, second))
    with pytest.raises(UserError, match="no stream 'sfd'"):
        open_source("w", SourceConfig(kind="world", stream="sfd"), tmp_path, 0)


# --- views ---


def test_interleave_follows_the_weights() -> None:
    streams = {"a": itertools.repeat(("a", 10)), "b": itertools.cycle([("b", 1), ("b", 7)])}
    drawn = itertools.islice(records.interleave(streams, {"a": 3, "b": 1}, lambda x: x[1]), 5000)
    taken = {"a": 0, "b": 0}
    for name, cost in drawn:
        taken[name] += cost
    assert taken["a"] / sum(taken.values()) == pytest.approx(0.75, abs=0.001)


def test_conversations_repeat_and_share(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "response": "r"} for i in range(10)])
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": f"q{i}", "response": "r"} for i in range(300)])
    sources = {
        "a": SourceConfig(path="a.jsonl"),
        "b": SourceConfig(path="b.jsonl", weight=3),
        "off": SourceConfig(path="missing.jsonl", weight=0),
    }
    drawn = records.conversations(sources, tmp_path, 0, 400)
    assert drawn == records.conversations(sources, tmp_path, 0, 400)
    mine = [c.prompt for c in drawn if c.source == "a"]
    assert len(mine) == 100
    assert all(sorted(mine[i : i + 10]) == sorted(mine[:10]) for i in range(0, 100, 10))
    assert mine[:10] != mine[10:20]
    assert len(records.conversations(sources, tmp_path, 0)) == 310


def test_missing_answer_names_file_and_line(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": "r", "answer": "1"}] * 4
    rows[2] = {"prompt": "p", "response": " ", "answer": ""}
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    sources = {"a": SourceConfig(path="a.jsonl")}
    for view in (records.conversations, records.problems):
        with pytest.raises(UserError, match=rf"{path}, line 3: the .* is empty"):
            view(sources, tmp_path, 0)


def test_endless_source_needs_a_count(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is endless"):
        records.problems({"w": SourceConfig(kind="world", stream="rlvr")}, tmp_path, 0)


def test_problem_carries_reward_and_record(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"question": " q ", "answer": "so\n#### 18", "level": 2}])
    source = SourceConfig(
        path="a.jsonl", prompt="{{ question }}", answer_pattern="#### (.*)", reward="math"
    )
    (problem,) = records.problems({"a": source}, tmp_path, 0)
    assert (problem.prompt, problem.answer, problem.reward) == ("q", "18", "math")
    assert problem.record["level"] == 2


def test_documents_skip_empty_ones_and_refuse_only_empty(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": " \n"}, {"text": "y"}])
    write_jsonl(tmp_path / "e.jsonl", [{"text": ""}, {"text": "  "}])
    drawn = records.documents({"a": SourceConfig(path="a.jsonl")}, tmp_path, 0)
    assert sorted(d.text for d in itertools.islice(drawn, 4)) == ["x", "x", "y", "y"]
    once = records.documents({"a": SourceConfig(path="a.jsonl")}, tmp_path, 0, repeat=False)
    assert sorted(d.text for d in once) == ["x", "y"]
    with pytest.raises(UserError, match="none of its records"):
        next(records.documents({"e": SourceConfig(path="e.jsonl")}, tmp_path, 0))


SOLUTION = (
    "Natalia sold 48/2 = 24 clips in May.\n"
    "Natalia sold 48+24 = 72 clips altogether in April and May.\n#### 72"
)


@pytest.mark.parametrize("seed", range(200))
def test_near_miss_changes_an_intermediate_and_the_result(seed: int) -> None:
    wrong = near_miss(SOLUTION, random.Random(seed))
    assert wrong is not None
    assert reward(wrong, "72") == 0.0
    assert "= 24" not in wrong
    final = wrong.rpartition(" ")[2]
    assert f"= {final} clips altogether" in wrong
    assert near_miss(SOLUTION, random.Random(seed)) == wrong


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("#### 0", "0"),
        ("#### 1,000", "1000"),
        ("it costs $0.50.", "0.5"),
        ("#### .5", "0.5"),
        ("= 3/4", "3/4"),
        ("#### -5", "-5"),
    ],
)
def test_near_miss_of_other_numbers_is_never_right(response: str, answer: str) -> None:
    for seed in range(100):
        wrong = near_miss(response, random.Random(seed))
        assert wrong is not None
        assert reward(response, answer) == 1.0
        assert reward(wrong, answer) == 0.0


@pytest.mark.parametrize("response", ["Yes.", r"2 = \frac34", "5 apples: 72km"])
def test_near_miss_of_no_sure_number(response: str) -> None:
    assert near_miss(response, random.Random(0)) is None


def test_pairs_leave_out_equal_ones(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": r} for r in ("a", "b")]
    write_jsonl(tmp_path / "a.jsonl", rows)
    (pair,) = records.pairs({"a": SourceConfig(path="a.jsonl")}, tmp_path, 0)
    assert (pair.chosen, pair.rejected) == ("a", "b")


def test_near_miss_pairs_of_gsm8k_are_always_wrong() -> None:
    root = shared_data()
    if not (root / "gsm8k" / "train.jsonl").is_file():
        pytest.skip("needs gsm8k/train.jsonl below REMIT_DATA")
    source = SourceConfig(
        path="gsm8k/train.jsonl",
        prompt="{{ question }}",
        response="{{ answer }}",
        answer_pattern=r"#### (.*)",
        strip=r"<<[^>]*>>",
        near_miss=True,
        limit=2000,
    )
    gold = {p.prompt: p.answer for p in records.problems({"g": source}, root, 0)}
    drawn = records.pairs({"g": source}, root, 0)
    assert len(drawn) == 2000
    assert all(reward(p.chosen, gold[p.prompt]) == 1.0 for p in drawn)
    assert not any(reward(p.rejected, gold[p.prompt]) for p in drawn)
