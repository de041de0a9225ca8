"""SFT and DPO by epochs: every record once in a pass, and the steps that come of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.records import conversation_passes, fill_steps, pair_passes
from pipelines.recipe.schema import DpoConfig, SftConfig, SourceConfig, steps_of_epochs

WORDS = ("red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "teal")


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    lines = [
        {"prompt": f"{number}+1=", "response": str(number + 1), "chosen": str(number + 1),
         "rejected": str(number + 2), "colour": word}
        for number, word in enumerate(WORDS)
    ]  # fmt: skip
    path = tmp_path / "colours.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_record_once_in_a_pass(colours: Path) -> None:
    sources = {
        "first": SourceConfig(path=str(colours), limit=3),
        "all": SourceConfig(path=str(colours), prompt="all {{ prompt }}"),
    }
    passes = conversation_passes(sources, "", 0)
    first, second = ([c.prompt for c in next(passes)] for _ in range(2))
    assert len(first) == 13 and Counter(first) == Counter(second)
    assert set(Counter(first).values()) == {1} and first != second
    assert first == [c.prompt for c in next(conversation_passes(sources, "", 0))]


@pytest.mark.parametrize(
    ("epochs", "batch", "steps", "times"),
    [(2, 4, 5, {2}), (1, 4, 3, {1, 2}), (0.5, 5, 1, {1}), (0.3, 1, 3, {1}), (3, 10, 3, {3})],
)
def test_steps_of_epochs(
    colours: Path, epochs: float, batch: int, steps: int, times: set[int]
) -> None:
    settings = SftConfig(num_train_epochs=epochs, global_batch_size=batch)
    assert steps_of_epochs(settings, 10) == steps
    passes = conversation_passes({"all": SourceConfig(path=str(colours))}, "", 0)
    drawn = fill_steps(passes, lambda records: steps_of_epochs(settings, records) * batch)
    assert len(drawn) == steps * batch
    assert set(Counter(c.prompt for c in drawn).values()) == times
    whole = [c.prompt for c in drawn[:10]]
    assert len(set(whole)) == len(whole), "no record comes again before all have come"


def test_near_misses_are_the_same_in_each_pass(colours: Path) -> None:
    source = SourceConfig(path=str(colours), near_miss=True)
    passes = pair_passes({"all": source}, "", 0)
    first, second = (sorted(next(passes), key=lambda pair: pair.prompt) for _ in range(2))
    assert first == second and len(first) == 10


def test_steps_of_epochs_of_pairs() -> None:
    assert steps_of_epochs(DpoConfig(num_train_epochs=2, global_batch_size=4), 8) == 4


def test_a_training_by_epochs(remit: Any, tiny_model: Path, colours: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "epochs.yaml"
    source = f"{{all: {{path: {colours}}}}}"
    recipe.write_text(
        "sequence_length: 64\n"
        f"sft: {{max_steps: 0, num_train_epochs: 2, global_batch_size: 4, sources: {source}}}\n"
        f"dpo: {{max_steps: 0, num_train_epochs: 2, global_batch_size: 4, heldout_pairs: 2,\n"
        f"      sources: {source}}}\n"
        "rlvr: {enabled: false}\n"
    )
    run = tmp_path / "run"
    remit("post-train", "--base", tiny_model, "--config", recipe, "--run-dir", run,
          "sft.logging_steps=1", check=True)  # fmt: skip
    sft, dpo = (
        json.loads((run / "post-train" / step / "result.json").read_text())
        for step in ("20-sft", "30-dpo")
    )
    # 2 x 10 / 4, and of the pairs two are held out: 2 x 8 / 4.
    assert (sft["steps"], dpo["steps"], dpo["heldout_pairs"]) == (5, 4, 2)
