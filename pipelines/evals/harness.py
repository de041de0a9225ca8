"""lm-evaluation-harness by task name: a plain adaptor. Its numbers are the ones people compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pipelines.data.tokenizer import load_tokenizer
from pipelines.errors import UserError
from pipelines.schema import EvalConfig


def lm_eval_scores(
    model_dir: Path, settings: EvalConfig, *, context_length: int, chat: bool
) -> dict[str, dict[str, float]]:
    """Metrics of each configured task (or group), by lm-eval's metric name, with its errors.

    Args:
        chat: apply the model's chat template.

    Raises:
        UserError: lm_eval is not installed, or has no task of that name.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            "eval.lm_eval_tasks needs lm-evaluation-harness: pip install 'remit-flywheel[eval]'."
        ) from error
    tasks = TaskManager(include_path=settings.lm_eval_include_path or None)
    unknown = [name for name in settings.lm_eval_tasks if not tasks.match_tasks([name])]
    if unknown:
        raise UserError(
            f"eval.lm_eval_tasks: lm-evaluation-harness has no task {', '.join(unknown)}; "
            "`lm-eval ls tasks` lists them, eval.lm_eval_include_path adds your own."
        )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.precision]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # An object, not a path: from a path the harness joins the ranks, and only this one is here.
    model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).to(device).eval(),
        tokenizer=load_tokenizer(model_dir),
        batch_size=settings.batch_size,
        max_length=context_length,
    )
    outcome = lm_eval.simple_evaluate(
        model=model,
        tasks=list(settings.lm_eval_tasks),
        limit=settings.lm_eval_limit or None,
        task_manager=tasks,
        apply_chat_template=chat,
        bootstrap_iters=0,
        log_samples=False,
    )
    assert outcome is not None
    return {task: _numbers(found) for task, found in outcome["results"].items()}


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    kept = {k: float(v) for k, v in found.items() if isinstance(v, (int, float)) and "," in k}
    # A result file holds numbers only: a metric that is not one would break readers.
    return {k: v for k, v in kept.items() if json.dumps(v) not in ("NaN", "Infinity", "-Infinity")}
