"""Every benchmark with local files, answered from its own key: the adaptors against ground truth.

    python tests/evals/gold_answers.py [questions per task; default all]

Gold answers must score 100%, empty ones 0, and choices at random their chance. IFEval has no gold
answers. Run by `make gold`; the tests take the first questions of each.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM

from pipelines.evals import harness
from pipelines.evals.availability import unavailable
from pipelines.evals.benchmarks import task_manager
from pipelines.recipe import load as config
from pipelines.recipe.schema import Config

# Task of the harness -> the completion that its own record calls right.
GOLD: dict[str, Callable[[dict[str, Any]], str]] = {
    "gsm8k": lambda doc: " " + doc["answer"],
    "minerva_math": lambda doc: " " + doc["solution"],
    "bbh": lambda doc: f"So the answer is {doc['target']}.",
    "mmlu_pro": lambda doc: f" the answer is ({doc['answer']})",
    "humaneval": lambda doc: doc["canonical_solution"],
    "mbpp": lambda doc: doc["code"],
}


def right_choice(doc: dict[str, Any]) -> str:
    if "mc1_targets" in doc:
        return str(doc["mc1_targets"]["choices"][0])
    if "choice1" in doc:
        return str(doc["answer"])
    return str(doc["choices"]["text"][doc["choices"]["label"].index(doc["answerKey"])])


class Gold(LM):
    """Answers every request from the record that it was made of."""

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self._completion(request) for request in requests]

    def _completion(self, request: Any) -> str:
        known = (make for task, make in GOLD.items() if request.task_name.startswith(task))
        make = next(known, None)
        return make(request.doc) if make else ""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [
            (0.0 if r.args[1].strip() == right_choice(r.doc).strip() else -1e6, False)
            for r in requests
        ]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise AssertionError("no benchmark asks for this")


class Nothing(Gold):
    """Empty completions, and choices at random, the same in every run."""

    def _completion(self, request: Any) -> str:
        return ""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        drawn = (hashlib.sha256(repr(r.args).encode()).digest()[0] for r in requests)
        return [(float(value), False) for value in drawn]


def paper10(data_root: Path, limit: int) -> Config:
    """The suite with local files."""
    loaded = config.load("world", ["eval.suite=paper10", f"data_root={data_root}"])
    for benchmark in loaded.eval.benchmarks.values():
        benchmark.limit = limit
    return loaded


class Benchmarks:
    """The benchmarks of a config that can be asked here, ready to be asked."""

    def __init__(self, loaded: Config, folder: Path) -> None:
        self.left_out = unavailable(loaded.eval, loaded.data_root)
        self.asked = {
            name: benchmark
            for name, benchmark in loaded.eval.benchmarks.items()
            if name not in self.left_out
        }
        settings = replace(loaded.eval, benchmarks=self.asked)
        self.tasks = task_manager(settings, loaded.data_root, folder)

    def score(self, model: LM, name: str, **changes: Any) -> dict[str, Any]:
        """What a model of the harness scores, with changed settings."""
        benchmark = replace(self.asked[name], **changes)
        return harness.ask(model, name, benchmark, self.tasks, chat=False)


def main() -> None:
    data_root = Path(os.environ["REMIT_DATA"])
    os.environ.setdefault("NLTK_DATA", str(data_root / "nltk_data"))
    loaded = paper10(data_root, int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    with tempfile.TemporaryDirectory() as folder:
        found = Benchmarks(loaded, Path(folder))
        rows = [(n, found.score(Gold(), n), found.score(Nothing(), n)) for n in found.asked]
    print(f"{'benchmark':15}{'questions':>10}{'gold':>9}{'nothing':>9}")
    for name, right, nothing in rows:
        print(
            f"{name:15}{right['questions']:10,}{right['accuracy']:9.1%}{nothing['accuracy']:9.1%}"
        )
    for name, why in found.left_out.items():
        print(f"{name}: not asked: {why}")


if __name__ == "__main__":
    main()
