"""Parts of the training loop by value, without an engine."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl

from pipelines.errors import Stopped
from pipelines.recipe.schema import MidTrainConfig
from pipelines.run_dir.paths import StageDir
from pipelines.training.callbacks import MetricsWriter, SnapshotWriter
from pipelines.training.engine import zero_config
from pipelines.training.facts import first_and_last, token_facts
from pipelines.training.finite_guard import ROW, numbered, take_numbers
from pipelines.training.mid_trainer import SequenceOrder, WeightSums
from pipelines.training.step_boundary import StepBoundary, generation_steps


def test_statistics_of_the_weights() -> None:
    sums = WeightSums(torch.device("cpu"), 0.2, True)
    # Targets: weights 0.8, 1.2, 1.1 and 1.0; the last of the first row is none.
    sums.add(
        torch.tensor([[0.8, 1.2, 0.0]]), torch.tensor([[-1.0, 3.0, 0.0]]),
        torch.tensor([[True, True, False]]),
    )  # fmt: skip
    sums.add(
        torch.tensor([[1.1, 1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[True, True]])
    )  # fmt: skip
    found = sums.take()
    assert found["weight_mean"] == pytest.approx(1.025)
    assert found["weight_std"] == pytest.approx(0.1479, abs=1e-4)
    assert (found["weight_at_low"], found["weight_at_high"]) == (0.25, 0.25)
    assert found["d_mean"] == 1.0 and found["d_std"] == pytest.approx(2**0.5)
    assert sums.take() == {}
    # Without a clip and without a reference, what they would say is left out.
    sums = WeightSums(torch.device("cpu"), None, False)
    sums.add(torch.tensor([[0.5, 1.5]]), torch.zeros(1, 2), torch.tensor([[True, True]]))
    assert sums.take() == {"weight_mean": 1.0, "weight_std": 0.5}


def test_a_resume_goes_on_in_the_order_of_the_sequences() -> None:
    whole = list(SequenceOrder(50, 3, begin=lambda: 0))
    assert sorted(whole) == list(range(50)) and whole != sorted(whole)
    assert list(SequenceOrder(50, 3, begin=lambda: 20)) == whole[20:]
    assert list(SequenceOrder(50, 4, begin=lambda: 0)) != whole


def test_the_global_batch_over_ranks_and_the_engines_settings() -> None:
    settings = MidTrainConfig(
        global_batch_size=24, micro_batch_size=3, max_grad_norm=0.7, zero_stage=2, dtype="bf16",
    )  # fmt: skip
    config = zero_config(settings, world_size=2)
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.7
    assert config["zero_optimization"]["stage"] == 2
    assert config["bf16"] == {"enabled": True}


HISTORY = [
    {"step": 1, "loss": 4.0, "weight_mean": 0.5, "tokens_per_second": 30.0},
    {"step": 4, "loss": 2.0, "weight_mean": 0.9, "tokens_per_second": 10.0},
    {"step": 4, "train_runtime": 2.0},
    {"step": 5, "loss": 1.0, "weight_mean": 0.6, "tokens_per_second": 20.0},
]


def test_what_is_reported_of_a_log() -> None:
    trainer: Any = SimpleNamespace(state=SimpleNamespace(log_history=HISTORY))
    assert first_and_last(HISTORY, "loss", "nll") == {"nll_first": 4.0, "nll_last": 1.0}
    assert first_and_last(HISTORY, "reward", "reward") == {}
    facts = token_facts(trainer, 700)
    assert (facts["tokens"], facts["tokens_per_second"]) == (700, 20.0)
    # One step of 0.5, three of 0.9, one of 0.6.
    assert facts["weight_mean"] == pytest.approx((0.5 + 3 * 0.9 + 0.6) / 5)
    assert "d_mean" not in facts
    trainer.state.log_history = [{"step": 1, "loss": 4.0}, {"step": 4, "train_runtime": 2.0}]
    assert token_facts(trainer, 700)["tokens_per_second"] == 350.0


def test_metrics_have_numbers_alone_and_none_that_json_lacks(tmp_path: Path) -> None:
    writer = MetricsWriter(StageDir(tmp_path))
    state: Any = SimpleNamespace(global_step=3, max_steps=9, is_world_process_zero=True)
    arguments: Any = SimpleNamespace()
    logs = {"loss": 1.5, "norm": float("nan"), "note": "text", "flag": True}
    writer.on_log(arguments, state, arguments, logs=logs)
    state.is_world_process_zero = False
    writer.on_log(arguments, state, arguments, logs=logs)
    (line,) = [json.loads(line) for line in StageDir(tmp_path).metrics.read_text().splitlines()]
    assert (line["step"], line["max_steps"], line["loss"], line["norm"]) == (3, 9, 1.5, "nan")
    assert not {"note", "flag"} & line.keys()


def test_models_are_kept_at_even_steps_before_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, int]] = []
    monkeypatch.setattr(
        SnapshotWriter, "_write", lambda self, number, step, is_main: kept.append((number, step))
    )
    nothing: Any = SimpleNamespace()
    writer = SnapshotWriter(nothing, StageDir(tmp_path), nothing, count=3)
    for step in range(1, 11):
        state: Any = SimpleNamespace(global_step=step, max_steps=10, is_world_process_zero=True)
        writer.on_step_end(nothing, state, nothing)
    assert kept == [(1, 2), (2, 5), (3, 8)]


def test_steps_that_share_rollouts() -> None:
    def steps(**arguments: int) -> int:
        trainer: Any = SimpleNamespace(args=SimpleNamespace(**arguments))
        return generation_steps(trainer)

    assert steps() == 1
    assert steps(steps_per_generation=8, gradient_accumulation_steps=4, num_iterations=1) == 2
    assert steps(steps_per_generation=8, gradient_accumulation_steps=4, num_iterations=3) == 6
    assert steps(steps_per_generation=6, gradient_accumulation_steps=4, num_iterations=1) == 3


def test_rows_keep_their_numbers_through_a_collate_function() -> None:
    rows = [{"x": 5, ROW: 7}, {"x": 6, ROW: 2}]
    batch = numbered(lambda rows: {"x": torch.tensor([row["x"] for row in rows])})(rows)
    assert take_numbers(batch) == [7, 2] and list(batch) == ["x"]
    listed = numbered(lambda rows: rows)(rows)
    assert take_numbers(listed) == [7, 2] and listed == [{"x": 5}, {"x": 6}]
    assert numbered(lambda rows: rows)([{"x": 1}]) == [{"x": 1}]


def test_a_signal_that_comes_while_ranks_agree_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rank sees nothing at this step, so both go on, and stop after the next."""
    boundary = StepBoundary(StageDir(tmp_path), every_steps=0, every_seconds=0, unit=1)
    arrivals = [signal.SIGTERM]

    def all_reduce(flags: torch.Tensor, op: Any) -> None:
        if arrivals:
            boundary._note(arrivals.pop(), None)

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    arguments = SimpleNamespace(device=torch.device("cpu"))
    state = SimpleNamespace(max_steps=9, global_step=0, is_world_process_zero=False)
    for step, stops in ((1, False), (2, True)):
        state.global_step, control = step, TrainerControl()
        boundary.on_step_end(arguments, state, control)  # type: ignore[arg-type]
        assert (control.should_training_stop, control.should_save) == (stops, stops)
    with pytest.raises(Stopped) as stopped:
        boundary.raise_if_stopped()
    assert (stopped.value.signum, stopped.value.step) == (signal.SIGTERM, 2)
