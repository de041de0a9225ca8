"""Tokenizers: round trips, chat, and the comparison of two folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines import world
from pipelines.data.new_tokenizer import build_tokenizer
from pipelines.errors import UserError
from pipelines.models.tokenizer import (
    encoding_fingerprint,
    ensure_chat,
    tokenizers_agree,
)
from pipelines.recipe.schema import SourceConfig, TokenizerConfig

WORLD = build_tokenizer(TokenizerConfig(kind="world"), {}, ".", 0)
PROMPT = [{"role": "user", "content": "2 + 2"}]
ANSWER = [{"role": "assistant", "content": "4"}]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("bpe")
    rows = [{"text": f"The number {i} and its double {2 * i} meet.\n"} for i in range(500)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = TokenizerConfig(kind="bpe", vocab_size=280, train_characters=10_000)
    return build_tokenizer(config, {"a": SourceConfig(path="a.jsonl")}, folder, 0)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@given(st.text(alphabet=world.ALPHABET))
def test_world_round_trip(text: str) -> None:
    ids = ids_of(WORLD, text)
    assert len(ids) == len(text)
    assert WORLD.unk_token_id not in ids
    assert WORLD.decode(ids) == text


def test_world_vocabulary() -> None:
    assert len(WORLD) == len(world.ALPHABET) + 5
    assert ids_of(WORLD, "a\u00e9\u00e9b").count(WORLD.unk_token_id) == 2
    assert WORLD.pad_token_id != WORLD.eos_token_id
    assert WORLD.bos_token is None


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_round_trip(bpe: PreTrainedTokenizerFast, text: str) -> None:
    assert bpe.decode(ids_of(bpe, text)) == text


def test_bpe_tokens(bpe: PreTrainedTokenizerFast) -> None:
    assert len(bpe) == 280
    assert len(ids_of(bpe, "1234")) == 4
    assert len(ids_of(bpe, " number")) < len(" number")
    assert bpe.pad_token_id != bpe.eos_token_id


def test_bpe_is_deterministic_and_bounded(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"text": f"The number {i} and its double {2 * i} meet.\n"} for i in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = {"a": SourceConfig(path="a.jsonl")}
    config = TokenizerConfig(kind="bpe", vocab_size=280, train_characters=10_000)
    again = build_tokenizer(config, sources, tmp_path, 0)
    assert encoding_fingerprint(again) == encoding_fingerprint(bpe)
    config.vocab_size = 100
    with pytest.raises(UserError, match="needs at least 260"):
        build_tokenizer(config, sources, tmp_path, 0)


def test_saved_and_loaded(tmp_path: Path, bpe: PreTrainedTokenizerFast) -> None:
    for tokenizer in (WORLD, bpe):
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        text = "  two lines\n\n and  a b ."
        assert ids_of(loaded, text) == ids_of(tokenizer, text)
        assert loaded.decode(ids_of(loaded, text)) == text
        assert loaded.chat_template == tokenizer.chat_template
        assert encoding_fingerprint(loaded) == encoding_fingerprint(tokenizer)


def test_chat_prompt_is_a_prefix_of_the_conversation() -> None:
    prompt = WORLD.apply_chat_template(PROMPT, add_generation_prompt=True, tokenize=False)
    whole = WORLD.apply_chat_template(PROMPT + ANSWER, tokenize=False)
    assert prompt == "<|user|>2 + 2<|assistant|>"
    assert whole == prompt + "4<|eos|>"
    ids = ids_of(WORLD, whole)
    assert ids[: len(ids_of(WORLD, prompt))] == ids_of(WORLD, prompt)
    assert ids[-1] == WORLD.eos_token_id


def adopted(**specials: str) -> PreTrainedTokenizerFast:
    tokens = ["</s>", *"abc 24+"]
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **specials)


def test_ensure_chat_adds_what_is_missing() -> None:
    tokenizer = adopted(pad_token="</s>")
    assert ensure_chat(tokenizer) == ["<|pad|>", "<|user|>", "<|assistant|>"]
    assert tokenizer.pad_token_id == 8 and tokenizer.eos_token_id == 0
    text = tokenizer.apply_chat_template(PROMPT + ANSWER, tokenize=False)
    assert text == "<|user|>2 + 2<|assistant|>4</s>"
    assert ids_of(tokenizer, text)[0] == tokenizer.convert_tokens_to_ids("<|user|>")
    assert ensure_chat(tokenizer) == []


def test_ensure_chat_with_a_template_adds_no_roles() -> None:
    tokenizer = adopted()
    assert ensure_chat(tokenizer, "{{ messages[0]['content'] }}") == ["<|pad|>"]
    assert tokenizer.apply_chat_template(PROMPT, tokenize=False) == "2 + 2"
    own = adopted(pad_token="a")
    own.chat_template = "own"
    assert ensure_chat(own, "given") == []
    assert own.chat_template == "own"


def folder_with(folder: Path, tokens: list[str], merges: list[Any], split: bool = False) -> Path:
    folder.mkdir()
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    if split:
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_tokenizers_agree(tmp_path: Path) -> None:
    tokens = ["a", "b", "ab", "ba"]
    base = folder_with(tmp_path / "base", tokens, [("a", "b"), ("b", "a")])
    more = folder_with(tmp_path / "more", [*tokens, "<|x|>"], [("a", "b"), ("b", "a")])
    assert tokenizers_agree(base, more) is None
    said = tokenizers_agree(more, base)
    assert said == "token '<|x|>' has id 4 in the base and no id in the reference"
    swapped = folder_with(tmp_path / "swapped", ["a", "b", "ba", "ab"], [("a", "b"), ("b", "a")])
    said = tokenizers_agree(base, swapped)
    assert said == "token 'ab' has id 2 in the base and id 3 in the reference"
    order = folder_with(tmp_path / "order", tokens, [("b", "a"), ("a", "b")])
    assert "merge 0 is ['a', 'b'] in the base" in str(tokenizers_agree(base, order))
    fewer = folder_with(tmp_path / "fewer", tokens, [("a", "b")])
    assert tokenizers_agree(base, fewer) == "the base has 2 merges, the reference 1"
    split = folder_with(tmp_path / "split", tokens, [("a", "b"), ("b", "a")], split=True)
    assert "pre-tokenizer" in str(tokenizers_agree(base, split))


def test_model_flags_are_compared(tmp_path: Path) -> None:
    base = folder_with(tmp_path / "base", ["a", "b", "ab"], [("a", "b")])
    other = folder_with(tmp_path / "other", ["a", "b", "ab"], [("a", "b")])
    rules = json.loads((other / "tokenizer.json").read_text())
    del rules["model"]["byte_fallback"]
    (other / "tokenizer.json").write_text(json.dumps(rules))
    assert tokenizers_agree(base, other) is None
    rules["model"]["byte_fallback"] = True
    (other / "tokenizer.json").write_text(json.dumps(rules))
    assert "byte_fallback" in str(tokenizers_agree(base, other))


def test_merges_in_the_old_notation_agree(tmp_path: Path) -> None:
    base = folder_with(tmp_path / "base", ["a", "b", "ab"], [("a", "b")])
    old = folder_with(tmp_path / "old", ["a", "b", "ab"], [("a", "b")])
    rules = json.loads((old / "tokenizer.json").read_text())
    rules["model"]["merges"] = ["a b"]
    (old / "tokenizer.json").write_text(json.dumps(rules))
    assert tokenizers_agree(base, old) is None


def test_a_tokenizer_of_ones_own_is_read_as_it_is_for_every_model_type(tmp_path: Path) -> None:
    # transformers makes the rules of Qwen2 anew for a folder with such a config.json.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config

    from pipelines.models.tokenizer import load_tokenizer

    sources = {"world": SourceConfig(kind="world", stream="pretrain")}
    made = build_tokenizer(
        TokenizerConfig(kind="bpe", vocab_size=300, train_characters=5000), sources, ".", 0
    )
    made.save_pretrained(tmp_path)
    Qwen2Config(vocab_size=300).save_pretrained(tmp_path)
    text = "Caf\u0065\u0301 12 + 345,  x=7 don't"
    wanted = made(text).input_ids
    read = load_tokenizer(tmp_path)
    assert read(text).input_ids == wanted
    assert encoding_fingerprint(read) == encoding_fingerprint(made)
    read.save_pretrained(tmp_path / "again")
    Qwen2Config(vocab_size=300).save_pretrained(tmp_path / "again")
    assert tokenizers_agree(tmp_path, tmp_path / "again") is None
    assert load_tokenizer(tmp_path / "again", padding_side="left")(text).input_ids == wanted
    stock = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(read, PreTrainedTokenizerFast)
    assert encoding_fingerprint(stock) != encoding_fingerprint(made), "no longer needed?"
