"""Keys of data sources, model shape and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.recipe.schema.setting import runtime_setting, setting


@dataclass
class SourceConfig:
    """One data source. Templates are Jinja2: `{{ question }}`, `{{ a[0].b }}`."""

    kind: Literal["world", "jsonl", "parquet", "text", "hub"] = setting(
        "jsonl",
        "type of the source: the built-in world, JSON Lines (.gz too), Parquet, plain text, or a "
        "hub data set",
    )
    path: str = setting("", "file or glob, absolute or below data_root; kind hub: data set's name")
    stream: str = setting("", "kind world: name of the stream")
    name: str = setting("", "kind hub: name of the configuration")
    split: str = setting("train", "kind hub: split to read")
    weight: float = setting(1.0, "relative weight in the mixture; 0 leaves the source out", low=0)
    limit: int = setting(
        0, "maximum number of records; 0: all (kind world: as many as the stage needs)", low=0
    )
    filter: dict[str, str] = setting(dict, "keep only records whose fields equal these values")
    hash_range: list[float] = setting(
        [0.0, 1.0],
        "keep only records whose prompt hashes into [from, to); separates SFT from RL questions",
    )
    text: str = setting("{{ text }}", "template of a plain-text document")
    prompt: str = setting("{{ prompt }}", "template of the user's turn")
    response: str = setting("{{ response }}", "template of the correct answer")
    chosen: str = setting("{{ chosen }}", "template of the preferred answer")
    rejected: str = setting("{{ rejected }}", "template of the rejected answer")
    answer: str = setting("{{ answer }}", "template of the gold answer for the reward")
    strip: str = setting("", "regular expression whose matches are removed from each rendered text")
    answer_pattern: str = setting(
        "", "regular expression applied to `answer`; its group 1 is the gold answer"
    )
    near_miss: bool = setting(
        False,
        "make preference pairs: chosen is the response, rejected the response with a wrong number",
    )
    reward: Literal["world", "math", "exact", "code"] = setting(
        "exact", "reward that judges an answer; code: runs the tests in `answer` in the sandbox"
    )
    licence: str = runtime_setting("", "licence of the text, printed next to its excerpts")
    publish: bool = runtime_setting(True, "allow excerpts in the analysis; false: only a hash")


def is_endless(source: SourceConfig) -> bool:
    """Whether a pass over the source never ends: a world stream other than eval, without limit."""
    return source.kind == "world" and source.stream != "eval" and not source.limit


@dataclass
class ModelConfig:
    """Shape of a model trained from scratch; for an imported base, `plan` estimates with it."""

    model_type: str = setting("llama", "transformers model type (AutoConfig.for_model)")
    vocab_size: int = setting(0, "rows of the embedding; 0: the size of the tokenizer", low=0)
    hidden_size: int = setting(96, "width of the residual stream", low=1)
    intermediate_size: int = setting(288, "width of the feed-forward layers", low=1)
    num_hidden_layers: int = setting(4, "number of transformer blocks", low=1)
    num_attention_heads: int = setting(4, "number of query heads", low=1)
    num_key_value_heads: int = setting(4, "number of key and value heads", low=1)
    tie_word_embeddings: bool = setting(True, "share the weights of embedding and output head")
    rope_theta: float = setting(10000.0, "base of the rotary position embedding", above=0)
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = setting(
        "sdpa", "attention implementation of learner and reference"
    )


@dataclass
class TokenizerConfig:
    kind: Literal["world", "bpe"] = setting(
        "world", "the characters of the built-in world, or byte-level BPE"
    )
    vocab_size: int = setting(4096, "kind bpe: size of the vocabulary", low=1)
    train_characters: int = setting(
        20_000_000, "kind bpe: characters of pre-training text to train on", low=1
    )
    chat_template: str = setting(
        "", "Jinja chat template for a base without one; empty: the default template"
    )
