"""Scoring: batches that do not fit into memory, and a scoring that was killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from pipelines.data.new_tokenizer import build_tokenizer
from pipelines.data.packed_set import PackedDataset
from pipelines.data.packing import pack
from pipelines.objectives.token_nll import score_tokens_in_forward
from pipelines.recipe.schema import SourceConfig, TokenizerConfig
from pipelines.training.scoring import score


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    tokenizer = build_tokenizer(TokenizerConfig(kind="world"), {}, ".", 0)
    sources = {"world": SourceConfig(kind="world", stream="mid_train")}
    return pack(
        sources, tokenizer, sequence_length=32, document_mask=True, num_tokens=32 * 20, seed=0,
        data_root=".", out_dir=tmp_path, data_sha256={"world": ""},
    )  # fmt: skip


@pytest.fixture
def model(tiny_model: Path) -> LlamaForCausalLM:
    loaded = LlamaForCausalLM.from_pretrained(tiny_model).eval()
    score_tokens_in_forward(loaded, loaded.config.vocab_size)
    return loaded


def test_a_batch_that_does_not_fit_is_halved(
    dataset: PackedDataset, model: LlamaForCausalLM, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = score(model, dataset, range(3, 20), batch_size=17)
    forward, sizes = model.forward, []

    def crowded(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 5:
            raise torch.OutOfMemoryError
        sizes.append(len(inputs["input_ids"]))
        return forward(**inputs)

    model.forward = crowded
    found = score(model, dataset, range(3, 20), batch_size=17)
    assert sizes == [4, 4, 4, 4, 1]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    said = "17 sequences do not fit into memory: using batches of 8 from here on"
    assert said in capsys.readouterr().out


def test_one_sequence_that_does_not_fit_is_an_error(
    dataset: PackedDataset, model: LlamaForCausalLM
) -> None:
    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    model.forward = full
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        score(model, dataset, range(4), batch_size=4)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 cores")
def test_two_ranks_write_the_shards_of_one(remit: Any, tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for ranks in ("1", "2"):
        remit(
            "score", "--config", "world-tiny", "--model", tiny_model, "mid_train.tokens=8192",
            "score.shard_sequences=10", "--gpus", ranks, "--run-dir", tmp_path / ranks, check=True,
        )  # fmt: skip
        paths = (tmp_path / ranks).glob("scores/*/sequences-*.npy")
        found.append({f"{p.parent.name}/{p.name}": p.read_bytes() for p in paths})
    assert len(found[0]) == 7 and found[0] == found[1]
    assert "7 of 7 shards" in (tmp_path / "2" / "score" / "log.txt").read_text()
