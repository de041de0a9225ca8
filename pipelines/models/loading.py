"""Load causal language models from local folders; every stage loads its models here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pipelines.objectives.token_nll import score_tokens_in_forward
from pipelines.recipe.schema import Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_model(folder: Path, dtype: str, config: Config) -> Any:
    """Load a model from a local folder; `dtype` is `fp32`, `bf16` or, as in the folder, `auto`."""
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES.get(dtype, "auto"),
        # Always set, because a model's config.json could name a kernel on the hub, which is code.
        attn_implementation=config.model.attn_implementation,
        trust_remote_code=bool(config.trust_remote_code),
        use_safetensors=True,
        local_files_only=True,
    )


def load_frozen(folder: Path, dtype: str, config: Config) -> Any:
    """Load a model in eval mode and without gradients, on this rank's device."""
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return load_model(folder, dtype, config).to(device).eval().requires_grad_(False)


def load_scorer(folder: Path, dtype: str, config: Config, num_tokens: int) -> Any:
    """Load a frozen model whose forward returns per-token losses (`score_tokens_in_forward`)."""
    model = load_frozen(folder, dtype, config)
    score_tokens_in_forward(model, num_tokens, chunk_bytes=config.chunk_bytes)
    return model
