"""Stage mid-train: anneal the base to learning rate 0, with or without a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Subset
from transformers import TrainingArguments

from pipelines.analysis.training_text import domain_shares, read_spans
from pipelines.data.packed_set import PackedDataset
from pipelines.data.score_cache import ScoreCache, ScoredSequences, open_scores
from pipelines.models.loading import load_model, load_scorer
from pipelines.models.tokenizer import load_tokenizer
from pipelines.objectives.objective import Objective
from pipelines.objectives.selection import difference_score, top_half
from pipelines.recipe.schema import num_steps, pool_factor, uses_score_cache
from pipelines.run_dir.job import StageJob
from pipelines.training import engine
from pipelines.training.callbacks import SnapshotWriter
from pipelines.training.facts import first_and_last, token_facts, training_facts
from pipelines.training.mid_trainer import MidTrainer
from pipelines.training.packed_data import packed
from pipelines.training.scoring import score_key


def run(job: StageJob) -> dict[str, Any]:
    """Train and write the annealed model to `model/`."""
    config, settings = job.config, job.config.mid_train
    tokenizer = load_tokenizer(job.inputs["base"])
    reference = None
    if "ref" in job.inputs and not uses_score_cache(settings):
        # Load it before the engine enters ZeRO-3 mode, so that it stays whole on each rank.
        reference = load_scorer(job.inputs["ref"], settings.dtype, config, len(tokenizer))
    arguments = engine.training_arguments(
        TrainingArguments, config, settings, job.stage_dir,
        steps=num_steps(settings, config.sequence_length), schedule="linear",
        # Batches carry tensors that the loss reads and the forward does not name.
        remove_unused_columns=False,
    )  # fmt: skip
    packed_set = packed(job, "mid_train", settings, tokenizer, factor=pool_factor(settings))
    packed_set.with_documents = settings.remit.center == "document"
    dataset, collate = with_scores(job, packed_set, len(tokenizer))
    model = load_model(job.inputs["base"], settings.dtype, config)
    trainer = MidTrainer(
        model, arguments, dataset, collate,
        num_tokens=len(tokenizer), reference=reference, objective=Objective.of(settings),
        chunk_bytes=config.chunk_bytes,
    )  # fmt: skip
    trainer.add_callback(SnapshotWriter(trainer, job.stage_dir, tokenizer, settings.snapshots))
    engine.train(trainer, job.stage_dir, settings)
    return {
        "objective": settings.objective,
        **({"reference": str(job.inputs["ref"])} if "ref" in job.inputs else {}),
        **training_facts(trainer),
        **token_facts(trainer, len(dataset) * config.sequence_length),
        "mixture": packed_set.mixture,
        **_selection(job, dataset),
        **first_and_last(trainer.state.log_history, "loss", "loss"),
        **engine.export(trainer, tokenizer, job, settings.dtype),
    }


def with_scores(job: StageJob, packed_set: PackedDataset, num_tokens: int) -> tuple[Any, Any]:
    """The training set and its collate function, combined with the score cache if it is used.

    Items then carry the reference's scores; for MiniPLM, the set is the selected half of the pool.
    """
    settings = job.config.mid_train
    if not uses_score_cache(settings):
        return packed_set, packed_set.collate

    def scores_of(role: str) -> ScoreCache:
        key, model = score_key(job, role, packed_set, num_tokens), str(job.inputs[role])
        return open_scores(job.run.scores, key, packed_set.stream, len(packed_set), model)

    if settings.objective == "miniplm":
        small = scores_of("small" if "small" in job.inputs else "base")
        ref = scores_of("ref")
        difference = np.array([
            difference_score(ref[i], small[i], packed_set.num_targets(i))
            for i in range(len(packed_set))
        ])  # fmt: skip
        chosen = top_half(difference, len(packed_set) // pool_factor(settings))
        return Subset(packed_set, chosen.tolist()), packed_set.collate
    scored = ScoredSequences(packed_set, scores_of("ref"))
    return scored, scored.collate


# Sequences of the pool whose domains are reported; their sources must be read again.
INSPECTED = 4096


def _selection(job: StageJob, dataset: Any) -> dict[str, Any]:
    """How MiniPLM's selection changed the mixture, by domain; empty for other objectives."""
    if not isinstance(dataset, Subset):
        return {}
    config = job.config
    pool: PackedDataset = dataset.dataset  # type: ignore[assignment]
    count = min(len(pool), INSPECTED)
    spans = read_spans(pool, count, config.mid_train.sources, config.data_root, config.seed)
    chosen = np.array(dataset.indices)
    return {
        "selection": {
            "pool_sequences": len(pool),
            "kept_sequences": len(dataset),
            "looked_at": count,
            "domains": domain_shares(spans, chosen[chosen < count], config.sequence_length),
        }
    }
