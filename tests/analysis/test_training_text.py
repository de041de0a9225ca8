"""Training sequences as text: documents, domains, excerpts, and texts of byte-level tokens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.analysis.token_text import TokenText
from pipelines.analysis.training_text import (
    Span,
    TrainingText,
    domain_shares,
    excerpts,
    read_training_text,
)
from pipelines.data.new_tokenizer import build_tokenizer
from pipelines.data.packing import pack
from pipelines.recipe.schema import SourceConfig, TokenizerConfig

WORLD = TokenizerConfig(kind="world")
RECORDS = {
    "sums": [{"text": f"add {i} {i} so {2 * i}", "domain": "problem"} for i in range(9)],
    "tales": [{"text": f"the cat saw {i} boats"} for i in range(9)],
}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, SourceConfig]:
    for name, records in RECORDS.items():
        lines = [json.dumps(record) for record in [*records, {"text": " "}]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return {
        "sums": SourceConfig(path="sums.jsonl", licence="CC0"),
        "tales": SourceConfig(path="tales.jsonl", publish=False),
    }


@pytest.fixture
def read(tmp_path: Path, sources: dict[str, SourceConfig]) -> Any:
    tokenizer = build_tokenizer(WORLD, {}, ".", 0)
    dataset = pack(
        sources, tokenizer, sequence_length=32, document_mask=True, num_tokens=32 * 20, seed=3,
        data_root=tmp_path, out_dir=tmp_path / "data", data_sha256=dict.fromkeys(sources, ""),
    )  # fmt: skip
    return read_training_text(dataset, 12, TokenText(tokenizer), sources, tmp_path, 3)


def test_every_document_has_its_text_and_domain(read: TrainingText) -> None:
    assert len(read.ids) == len(read.texts) == len(read.classes) == len(read.domains) == 12 * 32
    assert [span.start for span in read.spans][1:] == [span.stop for span in read.spans][:-1]
    texts = {record["text"] for records in RECORDS.values() for record in records}
    for span in read.spans[:-1]:
        text = "".join(read.texts[span.start : span.stop]).removesuffix("<|eos|>")
        assert text in texts
        domain = {"sums": "problem", "tales": "tales"}[span.source]
        assert span.domain == domain and ("so" in text) == (domain == "problem")
    for source in RECORDS:
        numbers = [span.number for span in read.spans if span.source == source]
        assert numbers == list(range(len(numbers))) and len(numbers) > 3
    assert {k for t, k in zip(read.texts, read.classes, strict=True) if t == "<|eos|>"} == {"other"}
    digits = {t for t, kind in zip(read.texts, read.classes, strict=True) if kind == "digits"}
    assert digits and all(text.isdigit() for text in digits)


def test_excerpts_lie_in_one_document_and_one_sequence(
    read: TrainingText, sources: dict[str, SourceConfig]
) -> None:
    numbers = np.arange(len(read.ids), dtype=np.float32)
    numbers[::32] = np.nan
    found = excerpts(read, sources, {"weights": numbers}, count=6, longest=16, shortest=4)
    assert len(found) == 6 and {piece["domain"] for piece in found} == {"problem", "tales"}
    for piece in found:
        places = [int(x) for x in piece["weights"] if x is not None]
        start, stop = places[0] // 32, places[-1] // 32
        assert start == stop and 4 <= len(piece["weights"]) <= 16
        assert piece["licence"] == {"problem": "CC0", "tales": ""}[piece["domain"]]
        first = places[0] - (piece["weights"][0] is None)
        span = next(s for s in read.spans if s.start <= first < s.stop)
        assert (span.source, span.number) == (piece["source"], piece["document"])
        words = read.texts[first : first + len(piece["weights"])]
        if piece["publish"]:
            assert piece["tokens"] == words and "sha256" not in piece
        else:
            digest = hashlib.sha256("".join(words).encode()).hexdigest()
            assert piece["tokens"] == [] and piece["sha256"] == digest


def test_domains_share_the_excerpts() -> None:
    spans = [Span(10 * i, 10 * i + 10, "w", i, "a" if i < 18 else "b") for i in range(20)]
    text = TrainingText(np.arange(200), ["x"] * 200, ["other"] * 200, spans, 100)
    source = {"w": SourceConfig(kind="world", stream="mid_train")}
    found = excerpts(text, source, {}, count=6)
    assert [piece["domain"] for piece in found] == ["a"] * 3 + ["b"] * 2
    assert [piece["document"] for piece in found] == [0, 8, 17, 18, 19]
    assert {piece["licence"] for piece in found} == {"built-in world"}


def test_texts_of_byte_level_tokens_join_to_the_text() -> None:
    config = TokenizerConfig(kind="bpe", vocab_size=300, train_characters=20_000)
    world = {"world": SourceConfig(kind="world", stream="pretrain")}
    tokenizer = build_tokenizer(config, world, ".", 0)
    text = "  the caf\u00e9 \U0001f600 is\n  12\u20ac."
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = TokenText(tokenizer).of(ids)
    assert len(found) == len(ids) and "".join(found) == text
    smile = found.index("\U0001f600")
    assert found[smile - 3 : smile] == [""] * 3, "the last of four bytes has the character"
    broken = TokenText(tokenizer).of(ids[:smile])
    assert "\ufffd" in broken[-1]


def test_domains_of_chosen_sequences() -> None:
    # Four sequences of 4 tokens: sums 6, tales 4, sums 2, code 4.
    ends = (0, 6, 10, 12, 16)
    domains = ("sums", "tales", "sums", "code")
    spans = [Span(a, b, "s", 0, d) for a, b, d in zip(ends, ends[1:], domains, strict=False)]
    shares = domain_shares(spans, np.array([0, 2]), 4)
    assert {d: s["pool"] for d, s in shares.items()} == {"code": 0.25, "sums": 0.5, "tales": 0.25}
    # Sequence 0 is sums alone; sequence 2 has two tokens of tales and two of sums.
    assert {d: s["kept"] for d, s in shares.items()} == {"code": 0.0, "sums": 0.75, "tales": 0.25}
    assert domain_shares(spans, np.array([], dtype=int), 4)["sums"]["kept"] == 0.0
