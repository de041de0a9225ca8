"""Stage pretrain-ckpt: train a base from scratch (the stable phase of WSD), or import one.

WSD is the warmup-stable-decay schedule; mid-training is its decay phase.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from pipelines.recipe.schema import num_steps
from pipelines.run_dir.job import StageJob
from pipelines.stages.base_model import import_checkpoint, new_model, new_tokenizer
from pipelines.training import engine
from pipelines.training.callbacks import SnapshotWriter
from pipelines.training.facts import first_and_last, token_facts, training_facts
from pipelines.training.mid_trainer import MidTrainer
from pipelines.training.packed_data import packed


def run(job: StageJob) -> dict[str, Any]:
    """Train or import the base, and write it to `model/`."""
    if "base" in job.inputs:
        return import_checkpoint(job)
    config, settings = job.config, job.config.pretrain
    arguments = engine.training_arguments(
        TrainingArguments, config, settings, job.stage_dir,
        steps=num_steps(settings, config.sequence_length), schedule="constant_with_warmup",
    )  # fmt: skip
    tokenizer = new_tokenizer(job)
    dataset = packed(job, "pretrain", settings, tokenizer)
    with engine.unsharded(arguments):
        model = new_model(config, tokenizer)
    trainer = MidTrainer(
        model, arguments, dataset, dataset.collate,
        num_tokens=len(tokenizer), chunk_bytes=config.chunk_bytes,
    )  # fmt: skip
    trainer.add_callback(SnapshotWriter(trainer, job.stage_dir, tokenizer, settings.snapshots))
    engine.train(trainer, job.stage_dir, settings)
    return {
        **training_facts(trainer),
        **token_facts(trainer, len(dataset) * config.sequence_length),
        "mixture": dataset.mixture,
        **first_and_last(trainer.state.log_history, "loss", "loss"),
        **engine.export(trainer, tokenizer, job, settings.dtype),
    }
