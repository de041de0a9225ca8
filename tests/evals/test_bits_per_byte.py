"""Bits per byte with its interval over blocks of documents, and the paired difference."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from pipelines.data.packing import pack
from pipelines.errors import UserError
from pipelines.evals.bits_per_byte import MAX_BLOCKS, bits_per_byte, blocks, cut, window_batches
from pipelines.evals.intervals import bits_difference, ratio_interval
from pipelines.models.tokenizer import load_tokenizer
from pipelines.objectives.token_nll import score_tokens_in_forward
from pipelines.recipe.schema import SourceConfig


class Letters:
    """One token for each letter; a capital costs two bits, others one."""

    eos_token_id = pad_token_id = 0
    bos_token_id: int | None = None
    device = "cpu"

    def __call__(self, text: str = "", add_special_tokens: bool = True, **kwargs: Any) -> Any:
        if "shift_labels" in kwargs:
            labels = kwargs["shift_labels"]
            nll = torch.where(labels < 91, 2.0, 1.0) * math.log(2)
            return {"nll": torch.where(labels == -100, 0.0, nll)}
        start = [self.bos_token_id] if add_special_tokens and self.bos_token_id else []
        return SimpleNamespace(input_ids=start + [ord(letter) for letter in text])

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class Opened(Letters):
    """It puts a token before each text, as the tokenizers of Llama and Gemma do."""

    bos_token_id = 1


def measured(texts: list[str], max_tokens: int = 1000) -> dict[str, Any]:
    letters: Any = Letters()
    return bits_per_byte(
        letters, letters, texts, named="web", sequence_length=4, max_tokens=max_tokens, batch_size=2
    )


def test_by_hand() -> None:
    found = measured(["abcdef", "ABCDE", "Ab", "x"])
    assert found["bits_per_byte"] == pytest.approx((5 + 8 + 1) / 10), "no first letter is predicted"
    assert (found["tokens"], found["bytes"]) == (10, 10)
    assert found["blocks"]["bytes"] == [5, 4, 1, 0]
    assert found["blocks"]["nll"] == pytest.approx([x * math.log(2) for x in (5, 8, 1, 0)])
    half = ratio_interval([5, 8, 1, 0], [5, 4, 1, 0])[1]
    assert found["half_interval"] == pytest.approx(half)
    assert measured(["abc"])["half_interval"] is None
    assert measured(["éa"])["bytes"] == 1, "bytes of what is predicted"


@pytest.mark.parametrize(
    ("tokenizer", "inputs", "labels"),
    [
        (Letters(), ["abcd", "ef..", "xy.."], ["bcde", "fg", "yz"]),
        (Opened(), ["\1abc", "\1def", "\1xy."], ["bcd", "efg", "yz"]),
    ],
)
def test_a_text_is_read_as_it_begins(tokenizer: Any, inputs: list[str], labels: list[str]) -> None:
    windows = cut(
        tokenizer, ["abcdefg", "q", "xyz"], named="web", sequence_length=4, max_tokens=1000
    )
    assert windows.documents == [0, 0, 2] and windows.counts == [len(own) for own in labels]
    tokenizer.pad_token_id = ord(".")
    [(rows, ids, shifted)] = window_batches(windows.ids, tokenizer, batch_size=3)
    assert rows == [0, 1, 2]
    assert [tokenizer.decode(row) for row in ids.tolist()] == inputs
    assert [tokenizer.decode([i for i in row if i >= 0]) for row in shifted.tolist()] == labels
    for row, own in zip(ids.tolist(), shifted.tolist(), strict=True):
        targets = [(before, after) for before, after in zip(row, own, strict=True) if after >= 0]
        assert all(after == before + 1 for before, after in targets), "each follows its input"


def test_documents_go_into_blocks_that_follow_each_other() -> None:
    assert blocks(3) == [0, 1, 2]
    many = blocks(1001)
    assert many == sorted(many) and len(set(many)) == MAX_BLOCKS
    sizes = [many.count(block) for block in range(MAX_BLOCKS)]
    assert max(sizes) - min(sizes) <= 1


def test_the_difference_pairs_blocks() -> None:
    first = measured([c * 4 for c in "abcdef"])["blocks"]
    second = first | {"nll": [x + 3 * 0.1 * math.log(2) for x in first["nll"]]}
    assert bits_difference(first, second) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-9))
    assert bits_difference(first, measured(["abcd"])["blocks"]) is None
    assert bits_difference(first, {}) is None
    other = measured([c * 4 for c in "abcdeg"])["blocks"]
    assert other["bytes"] == first["bytes"] and bits_difference(first, other) is None


def test_the_report_shows_interval_and_difference() -> None:
    from pipelines.report.scores import _bits
    from pipelines.report.summary import Column

    texts = ["abcdef", "ABCDE", "Ab"]
    plain = measured(texts)
    nll = [x - size * 0.1 * math.log(2) for x, size in zip(
        plain["blocks"]["nll"], plain["blocks"]["bytes"], strict=True)]  # fmt: skip
    models = [
        Column(title, title, {"bits_per_byte": {"web": plain},
                              "heldout_blocks": {"web": plain["blocks"] | {"nll": own}}})
        for title, own in (("base", nll), ("mid-0", plain["blocks"]["nll"]), ("mid-1", nll))
    ]  # fmt: skip
    cells = [_bits(model, "web", models) for model in models]
    alone = f"± {plain['half_interval']:.3f}"
    assert [cell.text for cell in cells] == ["1.400"] * 3
    assert [cell.interval for cell in cells] == [alone, alone, f"{alone}; -0.100 ± 0.000 vs mid-0"]


def test_documents_of_one_token_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"eval\.bits_per_byte\.web: none of its 2 documents has"):
        measured(["a", ""])


def test_text_is_read_as_masked_training_reads_it(tmp_path: Path, tiny_model: Path) -> None:
    """The nats of the documents are those of their targets in a packed set, EOS left out."""
    texts = ["add 3 4 so 7", "the cat saw a red box", "so 7", "run mm on 7"]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    tokenizer = load_tokenizer(tiny_model)
    model = LlamaForCausalLM.from_pretrained(tiny_model).eval()
    score_tokens_in_forward(model, len(tokenizer))
    num_tokens = sum(len(tokenizer(t).input_ids) + 1 for t in texts)
    packed = pack(
        {"text": SourceConfig(kind="jsonl", path=str(tmp_path / "text.jsonl"))}, tokenizer,
        sequence_length=num_tokens, document_mask=True, num_tokens=num_tokens, seed=0,
        data_root=".", out_dir=tmp_path / "packed", data_sha256={"text": "0"},
    )  # fmt: skip
    batch = packed.collate([packed[0]])
    targets = batch["shift_labels"]
    targets[targets == tokenizer.eos_token_id] = -100
    with torch.no_grad():
        nll = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], shift_labels=targets
        )["nll"].sum()
    found = bits_per_byte(
        model, tokenizer, texts, named="web", sequence_length=64, max_tokens=1000, batch_size=4
    )
    assert found["tokens"] == int((targets >= 0).sum())
    assert sum(found["blocks"]["nll"]) == pytest.approx(float(nll), rel=1e-4)
