"""Packed training data of a stage, packed once per run and shared by its stages."""

from __future__ import annotations

import os
import shutil

from transformers import PreTrainedTokenizerBase

from pipelines.data.local_cache import copied, place
from pipelines.data.packed_set import PackedDataset
from pipelines.data.packing import TEMPORARY, pack
from pipelines.recipe.schema import MidTrainConfig, PretrainConfig, whole_step_tokens
from pipelines.run_dir.job import StageJob
from pipelines.training.ranks import barrier, is_main_rank


def packed(
    job: StageJob,
    key: str,
    settings: PretrainConfig | MidTrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    factor: int = 1,
) -> PackedDataset:
    """The packed sequences for the steps of a stage, or `factor` times as many.

    A longer set begins with the same sequences. The main rank packs while the others wait.
    """
    config = job.config
    budget = whole_step_tokens(settings, config.sequence_length)

    def load(verify: bool) -> PackedDataset:
        return pack(
            settings.sources, tokenizer,
            sequence_length=config.sequence_length, document_mask=config.document_mask,
            num_tokens=factor * budget, seed=config.seed, data_root=config.data_root,
            out_dir=job.run.data, verify=verify,
            data_sha256={n: job.data_sha256[f"{key}.sources.{n}"] for n in settings.sources},
        )  # fmt: skip

    if is_main_rank():
        # Only one command writes to a run, so these folders were left by a killed one.
        for leftover in job.run.data.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover)
    dataset = load(verify=True) if is_main_rank() else None
    barrier()
    dataset = dataset or load(verify=False)
    cache = config.launch.local_cache
    if not cache:
        return dataset
    # The first rank of each node copies the set, and all open the copy.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        copied(dataset.folder, cache)
    barrier()
    return PackedDataset(place(dataset.folder, cache), document_mask=config.document_mask)
