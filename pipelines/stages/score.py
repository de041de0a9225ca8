"""Stage score: a model's log-probabilities over the mid-training sequences, into the score cache.

Whole weights on each rank; the ranks split the shards. No DeepSpeed engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from pipelines.data.packed_set import PackedDataset
from pipelines.data.score_cache import ScoreCache, ScoreKey, longer_scores
from pipelines.models.tokenizer import load_tokenizer
from pipelines.objectives.token_nll import score_tokens_in_forward
from pipelines.recipe.schema import Config, pool_factor
from pipelines.stages import StageJob
from pipelines.stages.packed_data import packed
from pipelines.training.batches import in_batches

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(job: StageJob) -> dict[str, Any]:
    """Write the scores that are missing; facts of the whole set."""
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
        # All ranks look before one writes.
        dist.barrier()
    if rank == 0:
        for name in cache.drop_damaged():
            print(f"{cache.folder / name} was damaged: it is scored again", flush=True)
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
        "tokens": len(dataset) * dataset.context_length,
        "shards": cache.num_shards,
        "world_size": world,
        # Of this rank alone; nothing where all scores were there.
        **({"tokens_per_second": round(world * scored / seconds, 1)} if scored else {}),
    }


def score_key(job: StageJob, role: str, dataset: PackedDataset, num_tokens: int) -> ScoreKey:
    """The name of the scores of an input model over `dataset`."""
    config = job.config
    return ScoreKey(
        data=dataset.fingerprint,
        document_mask=config.document_mask,
        model=job.hashes[role],
        num_tokens=num_tokens,
        attention=config.model.attention,
        precision=config.mid_train.precision,
    )


def _write_missing(
    job: StageJob, cache: ScoreCache, dataset: PackedDataset, num_tokens: int, rank: int, world: int
) -> int:
    """Score this rank's missing shards; tokens scored."""
    missing = [shard for shard in range(cache.num_shards) if not cache.has(shard)]
    print(f"{len(missing)} of {cache.num_shards} shards to score", flush=True)
    model = load_scorer(job.inputs["model"], job.config, num_tokens)
    scored = 0
    for shard in missing[rank::world]:
        sequences = cache.sequences_of(shard)
        cache.write(shard, score(model, dataset, sequences, job.config.score.batch_size))
        scored += len(sequences) * dataset.context_length
    return scored


def load_scorer(folder: Path, config: Config, num_tokens: int) -> Any:
    """A frozen model in eval mode on this rank's device, whose forward scores tokens."""
    model = load_frozen(folder, config)
    score_tokens_in_forward(model, num_tokens, chunk_bytes=config.chunk_bytes)
    return model


def load_frozen(folder: Path, config: Config) -> Any:
    """A frozen model in eval mode on this rank's device."""
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES[config.mid_train.precision],
        attn_implementation=config.model.attention,
        trust_remote_code=bool(config.trust_remote_code),
        use_safetensors=True,
        local_files_only=True,
    ).to(device)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def score(model: Any, dataset: PackedDataset, sequences: range, batch_size: int) -> np.ndarray:
    """Log-probabilities of the targets of some sequences, fp32 [sequences, context]."""

    def log_probabilities(rows: Sequence[int]) -> list[np.ndarray]:
        batch = dataset.collate([dataset[index] for index in rows])
        inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
        return [*-model(**inputs)["nll"].float().cpu().numpy()]

    rows = in_batches(sequences, batch_size, log_probabilities, "sequences")
    return np.stack(rows)
