"""What stages compute, against plain torch on the same records: losses and AdamW."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = ("global_batch_size=4", "micro_batch_size=4", "logging_steps=1")
Trained = tuple[Any, Any]


@pytest.fixture
def model(tiny_model: Path) -> Trained:
    """The tiny model and its tokenizer, as plain transformers loads them."""
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return loaded, AutoTokenizer.from_pretrained(tiny_model)


def source(section: str, path: Path, records: list[dict[str, str]]) -> str:
    """The override that makes these records the one source of a section."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"{section}.sources={{world: {{weight: 0}}, own: {{kind: jsonl, path: {path}}}}}"


def settings(section: str, *values: str) -> list[str]:
    return [f"{section}.{value}" for value in values]


def logged(stage: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").open()]
    return [line for line in lines if "grad_norm" in line]


def post_train(remit: Any, model: Path, run: Path, step: str, *args: str) -> Path:
    """Run one step of post-training on a model; its stage folder."""
    others = {"sft", "dpo", "rlvr"} - {step}
    off = [f"{other}.enabled=false" for other in sorted(others)]
    remit("post-train", "--config", "world-tiny", "--base", model, "--run-dir", run, *off,
          *settings(step, *BATCH), *args, check=True)  # fmt: skip
    (stage,) = (run / "post-train").glob(f"*-{step}")
    return stage


def answer_tokens(tokenizer: Any, prompt: str, answer: str) -> tuple[torch.Tensor, int]:
    """The ids of a conversation [1, tokens], and where its answer begins."""
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    asked = tokenizer.apply_chat_template(
        turns[:1], tokenize=False, add_generation_prompt=True
    )  # fmt: skip
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole.startswith(asked)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (whole, asked)]
    return torch.tensor([ids[0]]), len(ids[1])


def answer_nll(trained: Trained, prompt: str, answer: str) -> torch.Tensor:
    """Negative log-probability of each token of an answer."""
    network, tokenizer = trained
    ids, begin = answer_tokens(tokenizer, prompt, answer)
    logits = network(input_ids=ids).logits[0, begin - 1 : -1]
    return functional.cross_entropy(logits, ids[0, begin:], reduction="none")


# Answers of several lengths, so that a mean over records is not one over tokens.
ASKED = [("1+1=", "2"), ("what is 20 plus 3?", "it is 23."), ("name", "a b c d e f"), ("7", "77")]


def test_sft_has_its_loss_on_the_answers_alone(
    remit: Any, tiny_model: Path, model: Trained, tmp_path: Path
) -> None:
    records = [{"prompt": prompt, "response": answer} for prompt, answer in ASKED]
    stage = post_train(remit, tiny_model, tmp_path / "run", "sft", "sft.max_steps=1",
                       source("sft", tmp_path / "sft.jsonl", records))  # fmt: skip
    with torch.no_grad():
        nll = torch.cat([answer_nll(model, prompt, answer) for prompt, answer in ASKED])
    assert logged(stage)[0]["loss"] == pytest.approx(float(nll.mean()), rel=1e-5)


def test_dpo_prefers_what_the_records_call_chosen(
    remit: Any, tiny_model: Path, model: Trained, tmp_path: Path
) -> None:
    # One prompt is held out, so that every batch is of the other one.
    records = [
        {"prompt": prompt, "chosen": answer, "rejected": "no, or so"}
        for prompt, answer in ASKED[:2]
    ]
    stage = post_train(
        remit, tiny_model, tmp_path / "run", "dpo", "dpo.max_steps=2", "dpo.heldout_pairs=1",
        "dpo.learning_rate=1e-2", source("dpo", tmp_path / "dpo.jsonl", records),
    )  # fmt: skip
    first, second = logged(stage)
    with torch.no_grad():
        expected = [
            [
                -float(answer_nll(model, r["prompt"], r[kind]).sum())
                for kind in ("chosen", "rejected")
            ]
            for r in records
        ]
    found = [first["logps/chosen"], first["logps/rejected"]]
    assert any(found == pytest.approx(both, rel=1e-5) for both in expected), (found, expected)
    assert first["rewards/margins"] == 0 < second["rewards/margins"]


def test_three_steps_of_adamw_by_value(
    remit: Any, tiny_model: Path, model: Trained, tmp_path: Path
) -> None:
    # One record, so that every batch is the same one.
    prompt, answer = ASKED[2]
    betas, decay, peak, most = (0.7, 0.8), 0.4, 2e-2, 0.5
    own = settings(
        "sft", "max_steps=4", f"learning_rate={peak}", f"adam_beta1={betas[0]}",
        f"adam_beta2={betas[1]}", f"weight_decay={decay}", f"max_grad_norm={most}",
        "warmup_ratio=0.25",
    )  # fmt: skip
    stage = post_train(remit, tiny_model, tmp_path / "run", "sft", *own,
                       source("sft", tmp_path / "sft.jsonl",
                              [{"prompt": prompt, "response": answer}]))  # fmt: skip
    # One step of warm-up from 0, then down to 0 in a line.
    rates = [0.0, peak, peak * 2 / 3, peak / 3]
    assert [line["learning_rate"] for line in logged(stage)] == pytest.approx(rates)

    network, _ = model
    network.train()
    # Norms are not decayed.
    decayed = [p for name, p in network.named_parameters() if "norm" not in name]
    others = [p for name, p in network.named_parameters() if "norm" in name]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
        betas=betas, eps=1e-8,
    )  # fmt: skip
    norms = []
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        answer_nll(model, prompt, answer).mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), most)))
        optimizer.step()
    assert min(norms) > most, "every step is clipped"
    assert [line["grad_norm"] for line in logged(stage)] == pytest.approx(norms, rel=1e-4)
    for name, found in load_file(stage / "model" / "model.safetensors").items():
        expected = network.get_parameter(name)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=2e-5, msg=name)


def test_both_implementations_of_attention_train_alike(
    remit: Any, tiny_model: Path, tmp_path: Path
) -> None:
    # Attention of random weights is nearly even, and what computes it hardly shows.
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    for name in weights:
        if "q_proj" in name or "k_proj" in name:
            weights[name] *= 30
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    found = {}
    for kind in ("eager", "sdpa"):
        remit("mid-train", "--config", "world-tiny", "--base", model, "--run-dir",
              tmp_path / kind, "mid_train.tokens=4096", "mid_train.logging_steps=1",
              "mid_train.snapshots=0", f"model.attn_implementation={kind}", check=True)  # fmt: skip
        lines = logged(tmp_path / kind / "mid-train")
        found[kind] = [line[key] for line in lines for key in ("loss", "grad_norm")]
    assert len(found["sdpa"]) == 8
    assert found["eager"] == pytest.approx(found["sdpa"], rel=1e-4)
    # Sums in another order: the last bits tell that the key is read.
    assert found["eager"] != found["sdpa"]
