"""Stage DPO: direct preference optimization on chosen and rejected answers (TRL; arXiv 2305.18290).

The built-in recipes pair a right answer with a near miss.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from pipelines.data.chat import assistant, user
from pipelines.data.records import pairs
from pipelines.models.tokenizer import load_tokenizer
from pipelines.recipe.schema import max_length
from pipelines.run_dir.job import StageJob
from pipelines.training import engine
from pipelines.training.facts import first_and_last, training_facts


def run(job: StageJob) -> dict[str, Any]:
    """Train and write the model to `model/`; the reference policy is the stage's input model."""
    config, settings = job.config, job.config.dpo
    arguments = engine.training_arguments(
        DPOConfig, config, settings, job.stage_dir, steps=settings.max_steps, schedule="linear",
        max_length=max_length(settings, config.sequence_length), beta=settings.beta,
        per_device_eval_batch_size=settings.micro_batch_size,
    )  # fmt: skip
    tokenizer = load_tokenizer(job.inputs["model"])
    train_set, heldout = _preferences(job)
    model = engine.load_trained(job, "model", settings.dtype)
    trainer = DPOTrainer(
        model=model, args=arguments, train_dataset=train_set, eval_dataset=heldout,
        processing_class=tokenizer,
    )  # fmt: skip
    engine.train(trainer, job.stage_dir, settings)
    measured = trainer.evaluate()
    history = trainer.state.log_history
    return {
        **engine.engine_facts(trainer),
        **training_facts(trainer),
        **first_and_last(history, "loss", "loss"),
        "heldout_pairs": len(heldout),
        "heldout_pair_accuracy": measured["eval_rewards/accuracies"],
        "heldout_margin": measured["eval_rewards/margins"],
        **engine.export(trainer, tokenizer, job.stage_dir, settings.dtype),
    }


def _preferences(job: StageJob) -> tuple[Dataset, Dataset]:
    """Training pairs, and held-out pairs whose prompts do not occur in the training pairs."""
    config, settings = job.config, job.config.dpo
    count = settings.max_steps * settings.global_batch_size
    found = pairs(
        settings.sources, config.data_root, config.seed, count=count + settings.heldout_pairs
    )  # fmt: skip
    heldout_prompts: dict[str, None] = {}
    for pair in found:
        if len(heldout_prompts) == settings.heldout_pairs:
            break
        heldout_prompts[pair.prompt] = None
    rows = [
        {"prompt": user(p.prompt), "chosen": assistant(p.chosen), "rejected": assistant(p.rejected)}
        for p in found
    ]
    seen: set[str] = set()
    heldout, training = [], []
    for pair, row in zip(found, rows, strict=True):
        if pair.prompt not in heldout_prompts:
            training.append(row)
        elif pair.prompt not in seen:
            seen.add(pair.prompt)
            heldout.append(row)
    if not training:
        raise ValueError("dpo.heldout_pairs leaves no pair to train on. Lower it.")
    return Dataset.from_list(training), Dataset.from_list(heldout)
