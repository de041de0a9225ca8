"""Stage score: precompute a model's log-probabilities of the mid-training data (score cache).

Each rank loads the whole model, without a DeepSpeed engine, and the ranks split the shards.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pipelines.data.packed_set import PackedDataset
from pipelines.data.score_cache import ScoreCache, longer_scores
from pipelines.models.loading import load_scorer
from pipelines.models.tokenizer import load_tokenizer
from pipelines.recipe.schema import pool_factor
from pipelines.run_dir.job import StageJob
from pipelines.training.packed_data import packed
from pipelines.training.scoring import score, score_key


def run(job: StageJob) -> dict[str, Any]:
    """Write the missing scores, and return facts about the whole set."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    config = job.config
    folder = job.inputs.get("base", job.inputs["model"])
    tokenizer = load_tokenizer(folder)
    dataset = packed(
        job, "mid_train", config.mid_train, tokenizer, factor=pool_factor(config.mid_train)
    )
    key = score_key(job, "model", dataset, len(tokenizer))
    cache = ScoreCache(
        job.run.scores, key, dataset.stream, len(dataset), config.score.shard_sequences
    )
    if not cache.is_complete():
        cache = longer_scores(job.run.scores, key, dataset.stream, len(dataset)) or cache
    if world > 1:
        # All ranks must check for existing scores before one of them writes.
        dist.barrier()
    if rank == 0:
        for name in cache.drop_damaged():
            print(f"{cache.folder / name} was damaged: scoring it again", flush=True)
    if world > 1:
        dist.barrier()
    started, scored = time.monotonic(), 0
    if not cache.is_complete():
        scored = _write_missing(job, cache, dataset, len(tokenizer), rank, world)
    if world > 1:
        dist.barrier()
    seconds = time.monotonic() - started
    if rank == 0 and not cache.is_complete():
        cache.finish()
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
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
