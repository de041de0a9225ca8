"""Stage SFT: supervised fine-tuning on conversations, with loss on the answer only (TRL)."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from pipelines.data.chat import assistant, user
from pipelines.data.records import Conversation, conversation_passes, conversations, fill_steps
from pipelines.models.loading import load_model
from pipelines.models.tokenizer import load_tokenizer
from pipelines.recipe.schema import max_length, steps_of_epochs
from pipelines.run_dir.job import StageJob
from pipelines.training import engine
from pipelines.training.facts import first_and_last, training_facts


def run(job: StageJob) -> dict[str, Any]:
    """Train and write the fine-tuned model to `model/`."""
    config, settings = job.config, job.config.sft
    records = _conversations(job)
    steps = settings.max_steps or len(records) // settings.global_batch_size
    arguments = engine.training_arguments(
        SFTConfig, config, settings, job.stage_dir, steps=steps, schedule="linear",
        max_length=max_length(settings, config.sequence_length), completion_only_loss=True,
        **engine.order_of(settings),
    )  # fmt: skip
    tokenizer = load_tokenizer(job.inputs["model"])
    rows = [{"prompt": user(c.prompt), "completion": assistant(c.response)} for c in records]
    model = load_model(job.inputs["model"], settings.dtype, config)
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    engine.train(trainer, job.stage_dir, settings)
    history = trainer.state.log_history
    return {
        **training_facts(trainer),
        **first_and_last(history, "loss", "loss"),
        **first_and_last(history, "mean_token_accuracy", "token_accuracy"),
        **engine.export(trainer, tokenizer, job, settings.dtype),
    }


def _conversations(job: StageJob) -> list[Conversation]:
    """The conversations of all steps."""
    settings, batch = job.config.sft, job.config.sft.global_batch_size
    where = (settings.sources, job.config.data_root, job.config.seed)
    if settings.max_steps:
        return conversations(*where, count=settings.max_steps * batch)
    passes = conversation_passes(*where)
    return fill_steps(passes, lambda count: steps_of_epochs(settings, count) * batch)
