"""Create or import the base model: weights, tokenizer and chat tokens that all stages share."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipelines.data.new_tokenizer import build_tokenizer
from pipelines.errors import UserError
from pipelines.models.loading import DTYPES, load_model
from pipelines.models.tokenizer import ensure_chat, load_tokenizer
from pipelines.recipe.schema import Config
from pipelines.run_dir.job import StageJob
from pipelines.training.ranks import barrier, is_main_rank, replaced


def new_tokenizer(job: StageJob) -> PreTrainedTokenizerBase:
    """Train the base's tokenizer, or read it back from the stage folder after a resume."""
    folder = job.stage_dir.root / "tokenizer"
    if not (folder / "tokenizer.json").is_file() and is_main_rank():
        config = job.config
        tokenizer = build_tokenizer(
            config.tokenizer, config.pretrain.sources, config.data_root, config.seed
        )
        ensure_chat(tokenizer, config.tokenizer.chat_template)
        tokenizer.model_max_length = config.sequence_length
        with replaced(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    barrier()
    return load_tokenizer(folder)


def new_model(config: Config, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Create a model with random weights in the shape that the config gives.

    Raises:
        UserError: transformers does not know the model type, or the vocabulary is too small.
    """
    shape = config.model
    if shape.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"model.model_type = {shape.model_type}: transformers has no causal language model of "
            "that type. Choose another type, or install a newer transformers."
        )
    if 0 < shape.vocab_size < len(tokenizer):
        raise UserError(
            f"model.vocab_size = {shape.vocab_size} is less than the {len(tokenizer)} tokens of "
            "the tokenizer. Set it to 0 to use the size of the tokenizer."
        )
    model_config = AutoConfig.for_model(
        shape.model_type,
        vocab_size=max(shape.vocab_size, len(tokenizer)),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=config.sequence_length,
        tie_word_embeddings=shape.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(config.seed)
    return AutoModelForCausalLM.from_config(
        model_config, dtype=DTYPES[config.pretrain.dtype],
        attn_implementation=shape.attn_implementation,
    )  # fmt: skip


def import_checkpoint(job: StageJob) -> dict[str, Any]:
    """Copy an existing checkpoint to `model/` and add chat tokens, after checking that it works.

    Raises:
        RuntimeError: the checkpoint does not load, or its logits are not finite.
    """
    config, location = job.config, job.inputs["base"]
    tokenizer = load_tokenizer(location, trust_remote_code=bool(config.trust_remote_code))
    model = load_model(location, "auto", config)
    added = ensure_chat(tokenizer, config.tokenizer.chat_template)
    resized = len(tokenizer) > model.get_input_embeddings().num_embeddings
    if resized:
        # The new rows are random: seed them, so that the same base gives the same model.
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        probe = torch.arange(16).view(1, 16) % len(tokenizer)
        logits = model(input_ids=probe, use_cache=False).logits
    if not bool(torch.isfinite(logits).all()):
        raise RuntimeError(f"{location}: the model's logits are not finite")
    if is_main_rank():
        with replaced(job.stage_dir.model) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return {
        "imported": config.base,
        "parameters": model.num_parameters(),
        "chat_tokens_added": added,
        "embeddings_resized": resized,
    }
