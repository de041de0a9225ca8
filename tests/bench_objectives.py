"""Speed of a mid-training step and memory of the loss, as ratios measured in interleaved pairs.

    python tests/bench_objectives.py [pairs]

Trainer without DeepSpeed on both sides, in the environment of a stage with one thread: what is
compared is the loss, not the engine.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from pipelines.evals.intervals import mean_interval
from pipelines.machine.process import free_port
from pipelines.objectives.objective import NTP, Objective
from pipelines.objectives.token_nll import score_tokens_in_forward, token_nll
from pipelines.plan.placement import environment
from pipelines.recipe.schema import LaunchConfig
from pipelines.training.mid_trainer import MidTrainer

VOCAB, CONTEXT, BATCH, STEPS = 256, 128, 16, 30


class Sequences(Dataset):  # type: ignore[type-arg]
    """Random packed sequences, with reference scores where `cached`."""

    def __init__(self, cached: bool) -> None:
        generator = np.random.default_rng(0)
        self.ids = generator.integers(0, VOCAB, (BATCH * STEPS, CONTEXT))
        self.scores = -generator.random((BATCH * STEPS, CONTEXT), dtype=np.float32)
        self.cached = cached

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        scores = {"ref_logprobs": self.scores[index]} if self.cached else {}
        return {"input_ids": self.ids[index], **scores}

    @staticmethod
    def collate(items: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        batch = {key: torch.from_numpy(np.stack([i[key] for i in items])) for key in items[0]}
        targets = torch.full_like(batch["input_ids"], -100)
        targets[:, :-1] = batch["input_ids"][:, 1:]
        return {**batch, "shift_labels": targets, "labels": targets}

    @staticmethod
    def collate_stock(items: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(np.stack([i["input_ids"] for i in items]))
        return {"input_ids": ids, "labels": ids}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=96, intermediate_size=288, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


def seconds_of(arm: str, folder: str) -> float:
    """Seconds of STEPS training steps of an arm."""
    arguments = TrainingArguments(
        output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH, report_to=[],
        save_strategy="no", logging_steps=10_000, disable_tqdm=True, use_cpu=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    data = Sequences(cached=arm == "cached")
    if arm == "stock":
        trainer = Trainer(model(), arguments, train_dataset=data, data_collator=data.collate_stock)
    else:
        reference = None
        if arm == "inline":
            reference = model().eval().requires_grad_(False)
            score_tokens_in_forward(reference, VOCAB)
        objective = NTP if arm == "ntp" else Objective("remit")
        trainer = MidTrainer(
            model(), arguments, data, data.collate, num_tokens=VOCAB, reference=reference,
            objective=objective,
        )  # fmt: skip
    return float(trainer.train().metrics["train_runtime"])


def step_ratios(pairs: int) -> None:
    """Step time of an arm over that of another, in interleaved runs."""
    wanted = {
        "ReMiT cached / NTP (aim 1.03)": ("cached", "ntp"),
        "ReMiT inline / NTP (aim 1.40)": ("inline", "ntp"),
        "NTP / Trainer's stock loss (aim 1.02)": ("ntp", "stock"),
    }
    seen: dict[str, list[float]] = {arm: [] for arm in ("stock", "ntp", "cached", "inline")}
    with tempfile.TemporaryDirectory() as folder:
        for arm in seen:
            seconds_of(arm, folder)
        for _ in range(pairs):
            for arm, times in seen.items():
                times.append(seconds_of(arm, folder))
    for title, (arm, other) in wanted.items():
        logs = [math.log(a / b) for a, b in zip(seen[arm], seen[other], strict=True)]
        mean, half = mean_interval(logs)
        interval = (
            "" if half is None else f", {math.exp(mean - half):.3f} to {math.exp(mean + half):.3f}"
        )
        print(f"{title}: {math.exp(mean):.3f}{interval}")


def loss_memory(which: str, dim: int) -> None:
    """In a process of its own: peak memory of forward and backward beyond weights and gradients."""
    tokens, vocab = 4096, 100_352
    hidden = torch.randn(tokens, dim, requires_grad=True)
    weight = torch.randn(vocab, dim, requires_grad=True)
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    labels = torch.randint(vocab, (tokens,))
    # What the first call imports and allocates for good is none of the loss.
    small = torch.randn(8, 4, requires_grad=True)
    token_nll(small, torch.randn(9, 4), torch.randint(9, (8,)), chunk_bytes=72).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if which == "ours":
        token_nll(hidden, weight, labels).sum().backward()
    else:
        torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum").backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def memory_ratio(dim: int) -> None:
    def measured(which: str) -> int:
        command = [sys.executable, __file__, "memory", which, str(dim)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    ours, stock = measured("ours"), measured("stock")
    print(
        f"memory of the loss, 4096 tokens x 100352 x {dim} (aim 0.15 at 64): {ours / stock:.3f} "
        f"({ours / 1024:.0f} MB of {stock / 1024:.0f} MB)"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        loss_memory(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["steps"]:
        step_ratios(int(sys.argv[2]))
    else:
        assert Path("pipelines").is_dir(), "run it in the repository"
        pairs = sys.argv[1] if len(sys.argv) > 1 else "10"
        launch = LaunchConfig(env={"OMP_NUM_THREADS": "1"})
        env = environment(launch, free_port(), offline=True)
        subprocess.run([sys.executable, __file__, "steps", pairs], check=True, env=env)
        memory_ratio(64)
        memory_ratio(2048)
