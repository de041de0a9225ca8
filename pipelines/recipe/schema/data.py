"""Keys of data sources, model shape and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.recipe.schema.setting import setting


@dataclass
class SourceConfig:
    """One data source. Templates are Jinja2: `{{ question }}`, `{{ a[0].b }}`."""

    kind: Literal["world", "jsonl", "parquet", "text", "hub"] = setting(
        "jsonl", "built-in world, JSON Lines (.gz too), Parquet, plain text, or a hub data set"
    )
    path: str = setting("", "file or glob below data_root (or absolute), or the hub data set")
    stream: str = setting("", "kind world: which stream of the world")
    name: str = setting("", "kind hub: configuration name")
    split: str = setting("train", "kind hub: split")
    weight: float = setting(1.0, "share of the mixture; 0 leaves the source out", low=0)
    limit: int = setting(
        0, "use at most this many records; 0: all (world: what the stage needs)", low=0
    )
    filter: dict[str, str] = setting(dict, "keep records whose fields equal these values")
    hash_range: list[float] = setting(
        [0.0, 1.0], "keep records whose prompt hashes into [from, to); separates SFT from RL"
    )
    text: str = setting("{{ text }}", "template of a plain-text document")
    prompt: str = setting("{{ prompt }}", "template of the user's turn")
    response: str = setting("{{ response }}", "template of the right answer")
    chosen: str = setting("{{ chosen }}", "template of the preferred answer")
    rejected: str = setting("{{ rejected }}", "template of the rejected answer")
    answer: str = setting("{{ answer }}", "template of the gold answer that a reward compares with")
    strip: str = setting("", "regular expression removed from every rendered text")
    answer_pattern: str = setting(
        "", "regular expression; group 1 in the answer is the gold answer"
    )
    near_miss: bool = setting(
        False, "make preference pairs: chosen = response, rejected = response with a wrong number"
    )
    reward: Literal["world", "math", "exact", "code"] = setting(
        "exact", "how an answer is judged; code: the answer is tests, run in the sandbox"
    )
    licence: str = setting("", "licence of the text, named beside its excerpts", result=False)
    publish: bool = setting(
        True, "the analysis may show excerpts of the text; false: only a hash", result=False
    )


def is_endless(source: SourceConfig) -> bool:
    """Whether one pass over the source never ends: a world stream other than eval, no limit."""
    return source.kind == "world" and source.stream != "eval" and not source.limit


@dataclass
class ModelConfig:
    """Shape of a model trained from scratch; for an adopted base, what `plan` estimates with."""

    model_type: str = setting("llama", "transformers model type (AutoConfig.for_model)")
    vocab_size: int = setting(0, "0: the tokenizer's size", low=0)
    hidden_size: int = setting(96, "width of the residual stream", low=1)
    intermediate_size: int = setting(288, "width of the feed-forward layers", low=1)
    num_hidden_layers: int = setting(4, "number of blocks", low=1)
    num_attention_heads: int = setting(4, "query heads", low=1)
    num_key_value_heads: int = setting(4, "key and value heads", low=1)
    tie_word_embeddings: bool = setting(True, "share the input embedding with the output head")
    rope_theta: float = setting(10000.0, "base of the rotary position embedding", above=0)
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = setting(
        "sdpa", "attention backend, the same for learner and reference"
    )


@dataclass
class TokenizerConfig:
    kind: Literal["world", "bpe"] = setting("world", "characters of the world, or byte-level BPE")
    vocab_size: int = setting(4096, "kind bpe: number of tokens", low=1)
    train_characters: int = setting(
        20_000_000, "kind bpe: characters of pre-training text used", low=1
    )
    chat_template: str = setting("", "Jinja template for a base without one; empty: the default")
