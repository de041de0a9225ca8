"""Log-probabilities of packed sequences under a frozen model, and their key in the score cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipelines.data.packed_set import PackedDataset
from pipelines.data.score_cache import ScoreKey
from pipelines.models.batches import in_batches
from pipelines.run_dir.job import StageJob


def score_key(job: StageJob, role: str, dataset: PackedDataset, num_tokens: int) -> ScoreKey:
    """The key of the scores of an input model over `dataset`."""
    config = job.config
    return ScoreKey(
        data=dataset.fingerprint, document_mask=config.document_mask, model=job.hashes[role],
        num_tokens=num_tokens, attn_implementation=config.model.attn_implementation,
        dtype=config.mid_train.dtype,
    )  # fmt: skip


@torch.inference_mode()
def score(model: Any, dataset: PackedDataset, sequences: range, batch_size: int) -> np.ndarray:
    """Compute log-probabilities of the targets of some sequences, fp32 [sequences, context]."""

    def log_probabilities(rows: Sequence[int]) -> list[np.ndarray]:
        batch = dataset.collate([dataset[index] for index in rows])
        inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
        return [*-model(**inputs)["nll"].float().cpu().numpy()]

    rows = in_batches(sequences, batch_size, log_probabilities, "sequences")
    return np.stack(rows)
