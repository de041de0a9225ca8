"""Packing: a stream counted by hand, shares, determinism, the cache."""

from __future__ import annotations

import copy
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.data import packing
from pipelines.data.new_tokenizer import build_tokenizer
from pipelines.data.packed_set import PackedDataset
from pipelines.data.packing import pack
from pipelines.errors import UserError
from pipelines.recipe.schema import SourceConfig, TokenizerConfig

WORLD = build_tokenizer(TokenizerConfig(kind="world"), {}, ".", 0)
EOS = WORLD.eos_token_id
A, B, C, D, E = (WORLD.convert_tokens_to_ids(c) for c in "abcde")


def packed(
    root: Path, sources: dict[str, SourceConfig], num_tokens: int, **keys: Any
) -> PackedDataset:
    given = {"sequence_length": 4, "document_mask": True, "seed": 0, "out_dir": root / "packed"}
    given |= {"data_sha256": dict.fromkeys(sources, "0"), "tokenizer": WORLD} | keys
    return pack(sources, num_tokens=num_tokens, data_root=root, **given)


def stream(dataset: PackedDataset) -> list[int]:
    return np.concatenate([dataset[i]["input_ids"] for i in range(len(dataset))]).tolist()


def write(path: Path, texts: list[str]) -> None:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))


@pytest.fixture
def one_document(tmp_path: Path) -> tuple[Path, dict[str, SourceConfig]]:
    write(tmp_path / "a.jsonl", ["abcde"])
    write(tmp_path / "b.jsonl", ["a"])
    # Equal weights draw abcde. (6 tokens), then a. until six of b, and so on.
    return tmp_path, {"a": SourceConfig(path="a.jsonl"), "b": SourceConfig(path="b.jsonl")}


def test_a_longer_set_begins_with_a_shorter_one(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["abcde", "cab", "bad", "deed"] * 3)
    write(tmp_path / "b.jsonl", ["a", "ace"])
    sources = {"a": SourceConfig(path="a.jsonl", weight=3.0), "b": SourceConfig(path="b.jsonl")}
    short, long = (packed(tmp_path, sources, number) for number in (100, 1000))
    assert stream(long)[:100] == stream(short)
    assert short.stream == long.stream and short.fingerprint != long.fingerprint
    others = [packed(tmp_path, sources, 100, seed=1), packed(tmp_path, {"a": sources["a"]}, 100)]
    assert {short.stream}.isdisjoint(other.stream for other in others)


def test_by_hand(one_document: tuple[Path, dict[str, SourceConfig]]) -> None:
    root, sources = one_document
    dataset = packed(root, sources, 15)
    assert len(dataset) == 4
    # The stream: a b c d | e . a . | a . a . | a b c d
    assert [dataset[i]["input_ids"].tolist() for i in range(4)] == [
        [A, B, C, D],
        [E, EOS, A, EOS],
        [A, EOS, A, EOS],
        [A, B, C, D],
    ]
    positions = [[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 2, 3]]
    assert [dataset[i]["position_ids"].tolist() for i in range(4)] == positions
    batch = dataset.collate([dataset[i] for i in range(4)])
    assert batch["shift_labels"].tolist() == [
        [B, C, D, -100],
        [EOS, -100, EOS, -100],
        [EOS, -100, EOS, -100],
        [B, C, D, -100],
    ]
    assert torch.equal(batch["labels"], batch["shift_labels"])
    assert batch["labels"].data_ptr() != batch["shift_labels"].data_ptr()
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    spans = [(0, 6, "a"), (6, 8, "b"), (8, 10, "b"), (10, 12, "b"), (12, 16, "a")]
    assert dataset.spans(4) == spans and dataset.spans(2) == [(0, 6, "a"), (6, 8, "b")]
    assert dataset.facts["tokens"] == 16
    assert dataset.facts["documents"] == 5
    assert dataset.facts["sources"]["a"] == {
        "documents": 2, "tokens": 10, "epochs": 2, "empty": 0, "share": 0.625
    }  # fmt: skip
    assert dataset.facts["sources"]["b"]["epochs"] == 3


def test_without_document_mask(one_document: tuple[Path, dict[str, SourceConfig]]) -> None:
    root, sources = one_document
    masked, dataset = (packed(root, sources, 15, document_mask=mask) for mask in (True, False))
    assert dataset.folder == masked.folder
    assert dataset[1]["position_ids"].tolist() == [0, 1, 2, 3]
    batch = dataset.collate([dataset[1]])
    assert sorted(batch) == ["input_ids", "labels", "shift_labels"]
    assert batch["shift_labels"].tolist() == [[EOS, A, EOS, -100]]


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["a", "", " \n ", "b"])
    dataset = packed(tmp_path, {"a": SourceConfig(path="a.jsonl")}, 400)
    ids = stream(dataset)
    assert set(ids[1::2]) == {EOS} and set(ids[0::2]) == {A, B}
    facts = dataset.facts["sources"]["a"]
    assert facts["epochs"] == 100
    assert facts["documents"] == 200
    assert 198 <= facts["empty"] <= 200


def test_only_empty_documents(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["", " "])
    with pytest.raises(UserError, match="none of its records can be used"):
        packed(tmp_path, {"a": SourceConfig(path="a.jsonl")}, 40)
    assert list((tmp_path / "packed").iterdir()) == []


def test_shares_follow_the_weights(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["a" * (1 + 37 * i % 101) for i in range(300)])
    write(tmp_path / "b.jsonl", ["b" * (1 + 53 * i % 401) for i in range(40)])
    sources = {
        "a": SourceConfig(path="a.jsonl", weight=0.7),
        "b": SourceConfig(path="b.jsonl", weight=0.2),
        "w": SourceConfig(kind="world", stream="pretrain", weight=0.1),
    }
    facts = packed(tmp_path, sources, 50_000, sequence_length=64).facts["sources"]
    for name, source in sources.items():
        assert facts[name]["share"] == pytest.approx(source.weight, abs=0.02)
    assert facts["b"]["epochs"] > 1


def test_same_inputs_same_bytes_and_one_folder(tmp_path: Path) -> None:
    sources = {"w": SourceConfig(kind="world", stream="pretrain")}
    one = packed(tmp_path, sources, 5000)
    marker = (one.folder / "complete.json").stat().st_mtime_ns
    assert (packed(tmp_path, sources, 5000).folder / "complete.json").stat().st_mtime_ns == marker
    elsewhere = packed(tmp_path, sources, 5000, out_dir=tmp_path / "again")
    assert elsewhere.fingerprint == one.fingerprint
    assert elsewhere.facts == one.facts
    assert stream(elsewhere) == stream(one)


def test_fingerprint_follows_what_matters(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["abc"] * 9)
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    source = SourceConfig(path="a.jsonl")

    def name(changed: SourceConfig, **keys: Any) -> str:
        return packed(tmp_path, {"a": changed}, 40, **keys).fingerprint

    base = name(source)
    assert name(replace(source, path="b.jsonl")) == base
    assert name(replace(source, reward="math", chosen="x")) == base
    others = {
        name(replace(source, limit=3)),
        name(replace(source, text="{{ text }}{{ text }}")),
        name(source, seed=1),
        name(source, sequence_length=8),
        name(source, data_sha256={"a": "1"}),
    }
    assert len(others) == 5 and base not in others


def test_a_set_cut_short_is_packed_again(tmp_path: Path) -> None:
    sources = {"w": SourceConfig(kind="world", stream="pretrain")}
    whole = stream(packed(tmp_path, sources, 5000))
    folder = packed(tmp_path, sources, 5000).folder
    (folder / "tokens.bin").write_bytes(b"")
    assert stream(packed(tmp_path, sources, 5000)) == whole


def test_document_streams_span_flushes_and_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"w": SourceConfig(kind="world", stream="pretrain")}
    whole = packed(tmp_path, sources, 5000)
    monkeypatch.setattr(packing, "_FLUSH_TOKENS", 7)
    pieces = packed(tmp_path, sources, 5000, out_dir=tmp_path / "pieces")
    assert pieces.facts == whole.facts
    assert whole.facts["dtype"] == "uint16"


def test_no_thread_is_left_and_its_errors_surface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jsonl", ["abc"] * 500)
    sources = {"a": SourceConfig(path="a.jsonl")}
    before = threading.active_count()
    packed(tmp_path, sources, 1500)
    assert threading.active_count() == before

    class Broken:
        """The tokenizer's backend, but encoding fails."""

        def __getattr__(self, name: str) -> Any:
            return getattr(WORLD.backend_tokenizer, name)

        def encode_batch_fast(self, texts: list[str], **keys: Any) -> None:
            raise RuntimeError("cannot encode")

    broken = copy.copy(WORLD)
    monkeypatch.setattr(broken, "_tokenizer", Broken())
    with pytest.raises(RuntimeError, match="cannot encode"):
        packed(tmp_path, sources, 1600, tokenizer=broken)
    assert threading.active_count() == before
    assert [p.name for p in (tmp_path / "packed").iterdir() if p.name.startswith(".")] == []


def test_names_of_special_tokens_in_text_are_plain_text(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["a<|eos|>b"])
    dataset = packed(tmp_path, {"a": SourceConfig(path="a.jsonl")}, 40)
    assert stream(dataset).count(EOS) == 4  # ten tokens a document
    assert not WORLD.backend_tokenizer.encode_special_tokens
