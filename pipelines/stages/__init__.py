"""The stages of the loop. A stage is a function `run(job) -> result`; this is the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.recipe.schema import Config
from pipelines.run_dir.paths import RunDir, StageDir

# kind -> module with `run(job)`; imported in the worker, since it brings torch.
MODULES = {
    "pretrain": "pipelines.stages.pretrain",
    "mid_train": "pipelines.stages.mid_train",
    "sft": "pipelines.stages.sft",
    "dpo": "pipelines.stages.dpo",
    "rlvr": "pipelines.stages.rlvr",
    "score": "pipelines.stages.score",
    "evaluate": "pipelines.stages.evaluate",
    "contamination": "pipelines.stages.contamination",
    "analyze": "pipelines.stages.analyze",
}

# For a process that forks workers: keeps libraries from starting threads, which a fork would lose.
FORK_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


@dataclass(frozen=True)
class StageJob:
    """What a worker is asked to do, read from the stage's `config.yaml`.

    Attributes:
        name: the stage's name in the ledger, such as `round-1/10-mid-train`.
        inputs: model folder by role: base, ref or model.
        hashes: content hash of each input.
        data_sha256: content hash by config key of the source, such as `mid_train.sources.books`.
        chat: evaluate only: ask through the chat template.
    """

    kind: str
    name: str
    config: Config
    inputs: dict[str, Path]
    hashes: dict[str, str]
    data_sha256: dict[str, str]
    chat: bool
    stage_dir: StageDir
    run: RunDir
