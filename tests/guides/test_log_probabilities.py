"""docs/guides/log-probabilities.md: its loop runs as it stands, and weighs as ReMiT does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.data.packed_set import PackedDataset
from pipelines.data.packing import pack
from pipelines.data.score_cache import ScoreCache, ScoreKey
from pipelines.models.tokenizer import load_tokenizer
from pipelines.recipe.schema import SourceConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "log-probabilities.md"


def loop() -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    return str(code)


def logprobs_of(model: Any, packed: PackedDataset) -> np.ndarray:
    batch = packed.collate([packed[index] for index in range(len(packed))])
    labels = batch["shift_labels"]
    inputs = {k: v for k, v in batch.items() if k in ("input_ids", "position_ids")}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits.float().log_softmax(-1)
    found = logits.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return found.masked_fill(labels == -100, 0.0).numpy()


@pytest.mark.parametrize("same", [True, False], ids=["the base itself", "another model"])
def test_the_loop_of_the_page(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/base").symlink_to(tiny_model)
    tokenizer = load_tokenizer(tiny_model)
    packed = pack(
        {"world": SourceConfig(kind="world", stream="mid_train")}, tokenizer, sequence_length=64,
        document_mask=True, num_tokens=8 * 64, seed=0, data_root=".",
        out_dir=Path("runs/mine/data"), data_sha256={"world": ""},
    )  # fmt: skip
    reference = AutoModelForCausalLM.from_pretrained(tiny_model)
    if not same:
        torch.manual_seed(1)
        for parameter in reference.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    key = ScoreKey(packed.fingerprint, True, "reference", len(tokenizer), "sdpa", "fp32")
    cache = ScoreCache(Path("runs/mine/scores"), key, packed.stream, len(packed), 4)
    scores = logprobs_of(reference, packed)
    cache.write(0, scores[:4])
    cache.write(1, scores[4:])
    cache.finish()

    ran: dict[str, Any] = {}
    exec(compile(loop(), str(PAGE), "exec"), ran)

    # One step of all eight sequences, so the learner of the weights is the base.
    targets = ran["labels"] != -100
    d = torch.from_numpy(scores)[ran["rows"]] - ran["logprobs"].detach()
    mean = (d * targets).sum(-1, keepdim=True) / targets.sum(-1, keepdim=True)
    expected = (2 * (d - mean).sigmoid()).clamp(0.8, 1.2) * targets
    assert torch.allclose(ran["weights"], expected, atol=5e-3)
    spread = ran["weights"][targets].std()
    assert spread < 2e-3 if same else spread > 0.01
    after = ran["model"].state_dict()
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_the_loop_is_short() -> None:
    body = loop().split("for rows in")[1]
    assert body.count("\n") <= 15
