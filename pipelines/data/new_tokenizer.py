"""The tokenizer of a base that is trained from scratch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import world
from pipelines.data.records import Document, documents
from pipelines.errors import UserError
from pipelines.models.tokenizer import (
    ASSISTANT,
    DEFAULT_CHAT_TEMPLATE,
    EOS,
    PAD,
    UNK,
    USER,
    refuse_difference,
    rules_difference,
    saved_rules,
)
from pipelines.recipe.schema import Config, SourceConfig, TokenizerConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_WORLD_TOKENS = [PAD, EOS, UNK, USER, ASSISTANT, *world.ALPHABET]


def world_vocab_size() -> int:
    return len(_WORLD_TOKENS)


def build_tokenizer(
    config: TokenizerConfig,
    sources: Mapping[str, SourceConfig],
    data_root: str | Path,
    seed: int,
    *,
    model_max_length: int = 1_000_000,
) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a base that is trained from scratch.

    Kind `world` has one token per character of the built-in world's alphabet. Kind `bpe` is
    byte-level BPE with single digits, trained on `config.train_characters` characters of the
    mixture. Neither has BOS, and the padding token differs from EOS.

    Raises:
        UserError: the vocabulary is too small for all bytes, or a source cannot be read.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(config, sources, data_root, seed),
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK if config.kind == "world" else None,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
        chat_template=config.chat_template or DEFAULT_CHAT_TEMPLATE,
    )


def _backend(
    config: TokenizerConfig, sources: Mapping[str, SourceConfig], data_root: str | Path, seed: int
) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if config.kind == "world":
        vocab = {token: i for i, token in enumerate(_WORLD_TOKENS)}
        # BPE without merges is a character tokenizer; without a pre-tokenizer it is twice as fast.
        backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNK, fuse_unk=False))
        backend.decoder = decoders.Fuse()
        return backend
    specials = [PAD, EOS, USER, ASSISTANT]
    least = 256 + len(specials)
    if config.vocab_size < least:
        raise UserError(
            f"tokenizer.vocab_size = {config.vocab_size}: byte-level BPE needs at least {least}."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = _characters(config.train_characters, documents(sources, data_root, seed))
    backend.train_from_iterator(texts, trainer)
    return backend


def _characters(count: int, found: Iterator[Document]) -> Iterator[str]:
    for document in found:
        yield document.text[:count]
        count -= len(document.text)
        if count <= 0:
            return


def check_made_tokenizer(config: Config, ref: Path) -> None:
    """`check_tokenizers` for a base that is not yet trained: build its tokenizer, and compare it.

    Raises:
        UserError: the tokenizers differ, or a source of the tokenizer cannot be read.
    """
    made = _backend(config.tokenizer, config.pretrain.sources, config.data_root, config.seed)
    refuse_difference(
        rules_difference(made.to_str(), saved_rules(ref), set()),
        f"with the {config.tokenizer.kind} tokenizer of '{config.name}'",
        ref,
    )
