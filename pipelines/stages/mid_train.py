"""Stage mid-train: the base, annealed to learning rate 0, with or without a reference."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, TrainingArguments

from pipelines import engine
from pipelines.objectives.token_nll import score_tokens_in_forward
from pipelines.stages import StageJob
from pipelines.stages.mid_trainer import MidTrainer
from pipelines.stages.packed_data import num_steps, packed
from pipelines.stages.reported import first_and_last, token_facts, training_facts


def run(job: StageJob) -> dict[str, Any]:
    """Write the annealed model to `model/`."""
    config, settings = job.config, job.config.mid_train
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["base"], local_files_only=True)
    # Before the engine's ZeRO-3 mode, which would shard it: the reference is whole on each rank.
    reference = load_reference(job, num_tokens=len(tokenizer))
    arguments = engine.training_arguments(
        TrainingArguments, config, settings, job.stage_dir,
        steps=num_steps(settings, config), schedule="linear",
    )  # fmt: skip
    if reference is not None:
        reference.to(arguments.device)
    dataset = packed(job, "mid_train", settings, tokenizer)
    model = engine.load_model(job.inputs["base"], config, settings.precision)
    trainer = MidTrainer(
        model, arguments, dataset, dataset.collate,
        num_tokens=len(tokenizer), reference=reference, eps=settings.eps,
    )  # fmt: skip
    engine.train(trainer, job.stage_dir, settings)
    return {
        "objective": "remit" if reference is not None else "ntp",
        **({"reference": str(job.inputs["ref"])} if reference is not None else {}),
        **engine.engine_facts(trainer),
        **training_facts(trainer),
        **token_facts(trainer, len(dataset) * config.context_length),
        **first_and_last(trainer.state.log_history, "loss", "loss"),
        **engine.export(trainer, tokenizer, job.stage_dir, settings.precision),
    }


def load_reference(job: StageJob, num_tokens: int) -> Any | None:
    """The frozen reference in eval mode, or None without one."""
    if "ref" not in job.inputs:
        return None
    config = job.config
    reference = engine.load_model(job.inputs["ref"], config, config.mid_train.precision)
    score_tokens_in_forward(reference, num_tokens)
    return reference.eval().requires_grad_(False)
