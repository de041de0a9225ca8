"""Stage DPO: direct preference optimization on chosen and rejected answers (TRL; arXiv 2305.18290).

The built-in recipes pair a right answer with a near miss.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from pipelines.data.chat import assistant, user
from pipelines.data.records import Pair, fill_steps, pair_passes, pairs
from pipelines.errors import UserError
from pipelines.models.loading import load_model
from pipelines.models.tokenizer import load_tokenizer
from pipelines.recipe.schema import max_length, steps_of_epochs
from pipelines.run_dir.job import StageJob
from pipelines.training import engine
from pipelines.training.facts import first_and_last, training_facts


def run(job: StageJob) -> dict[str, Any]:
    """Train and write the model to `model/`; the reference policy is the stage's input model."""
    config, settings = job.config, job.config.dpo
    train_set, heldout = _preferences(job)
    steps = settings.max_steps or len(train_set) // settings.global_batch_size
    arguments = engine.training_arguments(
        DPOConfig, config, settings, job.stage_dir, steps=steps, schedule="linear",
        max_length=max_length(settings, config.sequence_length), beta=settings.beta,
        per_device_eval_batch_size=settings.micro_batch_size, **engine.order_of(settings),
    )  # fmt: skip
    tokenizer = load_tokenizer(job.inputs["model"])
    model = load_model(job.inputs["model"], settings.dtype, config)
    trainer = DPOTrainer(
        model=model, args=arguments, train_dataset=train_set, eval_dataset=heldout,
        processing_class=tokenizer,
    )  # fmt: skip
    engine.train(trainer, job.stage_dir, settings)
    measured = trainer.evaluate()
    history = trainer.state.log_history
    return {
        **training_facts(trainer),
        **first_and_last(history, "loss", "loss"),
        "heldout_pairs": len(heldout),
        "heldout_pair_accuracy": measured["eval_rewards/accuracies"],
        "heldout_margin": measured["eval_rewards/margins"],
        **engine.export(trainer, tokenizer, job, settings.dtype),
    }


def _preferences(job: StageJob) -> tuple[Dataset, Dataset]:
    """Training pairs, and held-out pairs whose prompts do not occur in the training pairs."""
    settings, batch = job.config.dpo, job.config.dpo.global_batch_size
    where = (settings.sources, job.config.data_root, job.config.seed)
    if settings.max_steps:
        found = pairs(*where, count=settings.max_steps * batch + settings.heldout_pairs)
        heldout = _held_out(found, settings.heldout_pairs)
        training = [pair for pair in found if pair.prompt not in heldout]
    else:
        passes = pair_passes(*where)
        first = next(passes)
        heldout = _held_out(first, settings.heldout_pairs)
        left = ([p for p in one if p.prompt not in heldout] for one in chain([first], passes))
        training = fill_steps(left, lambda records: steps_of_epochs(settings, records) * batch)
    if not training:
        raise UserError(
            f"dpo.heldout_pairs = {settings.heldout_pairs} leaves no pair to train on. Lower it."
        )
    return _rows(training), _rows(list(heldout.values()))


def _held_out(found: list[Pair], count: int) -> dict[str, Pair]:
    """The first pair of each of the first `count` prompts, by prompt."""
    first: dict[str, Pair] = {}
    for pair in found:
        first.setdefault(pair.prompt, pair)
    return dict(islice(first.items(), count))


def _rows(found: list[Pair]) -> Dataset:
    return Dataset.from_list([
        {"prompt": user(p.prompt), "chosen": assistant(p.chosen),
         "rejected": assistant(p.rejected)}
        for p in found
    ])  # fmt: skip
