"""lm-evaluation-harness as a library: a model that answers, and one benchmark at a time.

The harness builds the prompts, extracts the answers and judges them. One bit is kept for each
question, so that benchmarks have the tables, intervals and comparisons of any other task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import torch
import torch.distributed as dist
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from pipelines import heartbeat
from pipelines.errors import UserError
from pipelines.evals.benchmarks import leaves
from pipelines.evals.generation import decode_plainly
from pipelines.evals.intervals import digest_of, task_score
from pipelines.schema import BenchmarkConfig


class SharedRequests:
    """Mixin for a model of the harness: every rank answers its share of each call's requests.

    The harness sees one rank, so that prompts, with their randomly drawn examples, do not depend
    on the number of ranks; all ranks get all answers. A batch that does not fit is halved.
    """

    @property
    def rank(self) -> int:
        return 0

    @property
    def world_size(self) -> int:
        return 1

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().loglikelihood, requests)  # type: ignore[misc]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().generate_until, requests)  # type: ignore[misc]

    def _shared(
        self, answer: Callable[[Sequence[Any]], list[Any]], requests: Sequence[Any]
    ) -> list[Any]:
        if not dist.is_initialized():
            return self._in_batches_that_fit(answer, requests)
        rank, world = dist.get_rank(), dist.get_world_size()
        mine = requests[rank::world]
        shares: list[list[Any]] = [[] for _ in range(world)]
        dist.all_gather_object(shares, self._in_batches_that_fit(answer, mine) if mine else [])
        answers: list[Any] = [None] * len(requests)
        for i, share in enumerate(shares):
            answers[i::world] = share
        return answers

    def _in_batches_that_fit(
        self, answer: Callable[[Sequence[Any]], list[Any]], requests: Sequence[Any]
    ) -> list[Any]:
        while True:
            try:
                return answer(requests)
            except torch.OutOfMemoryError:
                if self.batch_size_per_gpu <= 1:
                    raise
                self.batch_size_per_gpu: int = self.batch_size_per_gpu // 2
                torch.cuda.empty_cache()


class TransformersModel(SharedRequests, HFLM):
    """A model in this process, on this rank's device; requests go sorted by length.

    Its `generation_config.json` changes no answer, see `decode_plainly`.
    """

    def __init__(self, pretrained: Any, **options: Any) -> None:
        decode_plainly(pretrained)
        super().__init__(pretrained=pretrained, **options)

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        heartbeat.moves()
        return super()._model_call(*args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        heartbeat.moves()
        return super()._model_generate(*args, **kwargs)


def vllm_model(model_dir: Path, *, precision: str, max_length: int) -> Any:
    """The same on vLLM, which batches by itself.

    Raises:
        UserError: vLLM is not installed.
    """
    try:
        from lm_eval.models.vllm_causallms import VLLM
    except ImportError as error:
        raise UserError(
            "eval.backend=vllm needs vLLM: pip install 'remit-flywheel[vllm]'."
        ) from error
    kind = type("VllmModel", (SharedRequests, VLLM), {})
    return kind(
        pretrained=str(model_dir),
        dtype={"fp32": "float32", "bf16": "bfloat16"}[precision],
        max_model_len=max_length or None,
        batch_size="auto",
    )


def ask(
    model: Any, name: str, benchmark: BenchmarkConfig, tasks: TaskManager, *, chat: bool
) -> dict[str, Any]:
    """Ask a model every question of a benchmark.

    Args:
        model: a model of the harness.
        tasks: knows the benchmark's task, with its data.
        chat: ask through the model's chat template.

    Returns:
        accuracy, interval, questions and bits as for other tasks; `families` for a group;
        `settings` that the numbers belong to.

    Raises:
        UserError: as `leaves`; or the harness has no such version or metric.
    """
    task, where = benchmark.task or name, f"eval.benchmarks.{name}"
    leaves(name, benchmark, tasks)
    outcome = lm_eval.simple_evaluate(
        model=model,
        tasks=[task],
        num_fewshot=benchmark.shots if benchmark.shots >= 0 else None,
        limit=benchmark.limit or None,
        gen_kwargs={"max_gen_toks": benchmark.max_new_tokens} if benchmark.max_new_tokens else None,
        task_manager=tasks,
        apply_chat_template=chat,
        fewshot_as_multiturn=False,
        bootstrap_iters=0,
        # `leaves` lets through only what the sandbox judges.
        confirm_run_unsafe_code=benchmark.runs_code,
    )
    # The harness gives its outcome to the first rank of a machine alone.
    found = [None if outcome is None else _score(where, task, benchmark, outcome, chat)]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    assert found[0] is not None
    return found[0]


def _score(
    where: str, task: str, benchmark: BenchmarkConfig, outcome: dict[str, Any], chat: bool
) -> dict[str, Any]:
    _check_version(where, benchmark, outcome["versions"], list(outcome["samples"]))
    found = {leaf: _bits(where, s, benchmark.metric) for leaf, s in outcome["samples"].items()}
    score = task_score([bit for bits in found.values() for bit in bits])
    score["questions_sha256"] = digest_of(
        sample["doc_hash"] for samples in outcome["samples"].values() for sample in samples
    )
    if len(found) > 1:
        score["families"] = {
            leaf: {"accuracy": sum(bits) / len(bits), "questions": len(bits)}
            for leaf, bits in found.items()
        }
    score["settings"] = _settings(task, benchmark, outcome, chat)
    return score


def _settings(
    task: str, benchmark: BenchmarkConfig, outcome: dict[str, Any], chat: bool
) -> dict[str, Any]:
    """How the questions were asked: what two results must share to be compared."""
    leaf, samples = next(iter(outcome["samples"].items()))
    config = outcome["configs"][leaf]
    return {
        "task": task,
        "harness": lm_eval.__version__,
        "version": str(outcome["versions"].get(leaf, "")),
        "metric": benchmark.metric,
        "shots": outcome["n-shot"][leaf],
        "chat": chat,
        "data": benchmark.files if _reads_files(config) else config["dataset_path"],
        "generation": config.get("generation_kwargs", {}),
        # Of the first question of the first task.
        "prompt_sha256": hashlib.sha256(_prompt(samples[0]).encode()).hexdigest(),
    }


def _reads_files(config: dict[str, Any]) -> bool:
    """Whether a task reads the local files of its benchmark."""
    return "data_files" in (config.get("dataset_kwargs") or {})


def _check_version(
    where: str, benchmark: BenchmarkConfig, versions: dict[str, Any], leaves: list[str]
) -> None:
    for leaf in leaves:
        found = str(versions.get(leaf, ""))
        if benchmark.version and found != benchmark.version:
            raise UserError(
                f"{where}: the harness ({lm_eval.__version__}) has {leaf} in version {found}, not "
                f"{benchmark.version}. Install the version that has it, or set {where}.version."
            )


def _bits(where: str, samples: list[dict[str, Any]], metric: str) -> list[int]:
    """1 for right and 0 for wrong, in the order of the questions."""
    key, _, wanted = metric.partition(",")
    of_filter = [s for s in samples if s["filter"] == (wanted or "none")]
    if not of_filter or key not in of_filter[0]:
        has = {f"{m},{s['filter']}" for s in samples for m in s["metrics"]}
        raise UserError(f"{where}: no metric {metric}; the task has {', '.join(sorted(has))}")
    values = [s[key] for s in sorted(of_filter, key=lambda s: s["doc_id"])]
    if not all(value in (0, 1) for value in values):
        raise UserError(f"{where}: metric {metric} is not right or wrong for each question")
    return [int(value) for value in values]


def _prompt(sample: dict[str, Any]) -> str:
    return str(sample["arguments"][0][0])
