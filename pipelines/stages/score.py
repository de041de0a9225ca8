"""Stage score: precompute a model's log-probabilities of the mid-training data (score cache).

Each rank loads the whole model, without a DeepSpeed engine, and the ranks split the shards.
"""

from __future__ import annotations

import time
from typing import Any

from pipelines.data.packed_set import PackedDataset
from pipelines.data.score_cache import ScoreCache, longer_scores
from pipelines.models.loading import load_scorer
from pipelines.models.tokenizer import load_tokenizer
from pipelines.recipe.schema import pool_factor
from pipelines.run_dir.job import StageJob
from pipelines.training.packed_data import packed
from pipelines.training.ranks import barrier, without_engine
from pipelines.training.scoring import score, score_key


def run(job: StageJob) -> dict[str, Any]:
    """Write the missing scores, and return facts about the whole set."""
    with without_engine() as (rank, world):
        return _scored(job, rank, world)


def _scored(job: StageJob, rank: int, world: int) -> dict[str, Any]:
    mid = job.config.mid_train
    tokenizer = load_tokenizer(job.inputs.get("base", job.inputs["model"]))
    dataset = packed(job, "mid_train", mid, tokenizer, factor=pool_factor(mid))
    key = score_key(job, "model", dataset, len(tokenizer))
    shard_sequences = job.config.score.shard_sequences
    cache = ScoreCache(job.run.scores, key, dataset.stream, len(dataset), shard_sequences)
    if not cache.is_complete():
        cache = longer_scores(job.run.scores, key, dataset.stream, len(dataset)) or cache
    # All ranks must check for existing scores before one of them writes.
    barrier()
    if rank == 0:
        for name in cache.drop_damaged():
            print(f"{cache.folder / name} was damaged: scoring it again", flush=True)
    barrier()
    started, scored = time.monotonic(), 0
    if not cache.is_complete():
        scored = _write_missing(job, cache, dataset, len(tokenizer), rank, world)
    barrier()
    seconds = time.monotonic() - started
    if rank == 0 and not cache.is_complete():
        cache.finish()
    return {
        "scores": str(cache.folder),
        "tokens": len(dataset) * dataset.sequence_length,
        "shards": cache.num_shards,
        "world_size": world,
        # Estimated from this rank; omitted if all scores existed already.
        **({"tokens_per_second": round(world * scored / seconds, 1)} if scored else {}),
    }


def _write_missing(
    job: StageJob, cache: ScoreCache, dataset: PackedDataset, num_tokens: int, rank: int, world: int
) -> int:
    """Score this rank's missing shards, and return the number of tokens scored."""
    missing = [shard for shard in range(cache.num_shards) if not cache.has(shard)]
    print(f"{len(missing)} of {cache.num_shards} shards to score", flush=True)
    model = load_scorer(job.inputs["model"], job.config.mid_train.dtype, job.config, num_tokens)
    scored = 0
    for shard in missing[rank::world]:
        sequences = cache.sequences_of(shard)
        cache.write(shard, score(model, dataset, sequences, job.config.score.batch_size))
        scored += len(sequences) * dataset.sequence_length
    return scored
