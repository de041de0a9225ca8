"""Tokenizers of model folders: load them, add chat tokens, and compare two folders.

`transformers` (and with it torch) is imported only to create a tokenizer, not to compare folders.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, EOS, UNK = "<|pad|>", "<|eos|>", "<|unk|>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
ADDED_KEY = "remit_added_for_chat"

# Completion-only losses need the prompt with its generation prompt to be an exact prefix of the
# prompt with its answer.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}\n"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def load_tokenizer(
    folder: str | Path, *, trust_remote_code: bool = False, **options: Any
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder, with the rules of its `tokenizer.json`.

    For some model types, transformers rebuilds the rules of the family from the vocabulary, and
    would split text differently; then the file is loaded as it is.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code, **options
    )
    file = Path(folder) / "tokenizer.json"
    if not found.is_fast or not file.is_file():
        return found
    saved, loaded = _rules(_read(file)), _rules(found.backend_tokenizer.to_str())
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    if all(saved.get(part) == loaded.get(part) for part in parts):
        return found
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, **options)


def num_tokens(folder: str | Path) -> int:
    """Number of ids that a saved tokenizer needs: its largest id plus 1."""
    vocab = _vocab(saved_rules(folder), f"{folder}/tokenizer.json")
    return max(vocab.values(), default=-1) + 1


def ensure_chat(tokenizer: PreTrainedTokenizerBase, chat_template: str = "") -> list[str]:
    """Add to an imported tokenizer, in place, what chat training needs.

    It adds an EOS token if none exists, a padding token if none exists or it equals EOS, and, if
    there is no chat template, `chat_template` (empty: the default with its role tokens).

    Returns:
        The tokens that are new in the vocabulary; the model's embeddings must grow by as many.
    """
    before = set(tokenizer.get_vocab())
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": EOS})
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if not tokenizer.chat_template:
        tokenizer.chat_template = chat_template or DEFAULT_CHAT_TEMPLATE
        if tokenizer.chat_template == DEFAULT_CHAT_TEMPLATE:
            from tokenizers import AddedToken

            roles = [AddedToken(role, special=True, normalized=False) for role in (USER, ASSISTANT)]
            tokenizer.add_tokens(roles, special_tokens=True)  # type: ignore[arg-type]
    vocab = tokenizer.get_vocab()
    added = sorted((token for token in vocab if token not in before), key=vocab.__getitem__)
    if added:
        # Every later save writes this key to tokenizer_config.json.
        tokenizer.init_kwargs[ADDED_KEY] = added
    return added


def added_for_chat(folder: str | Path) -> list[str]:
    """Tokens that `ensure_chat` added to a saved tokenizer or to its predecessors."""
    path = Path(folder) / "tokenizer_config.json"
    return list(json.loads(_read(path)).get(ADDED_KEY, [])) if path.is_file() else []


def encoding_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over everything that determines the ids of a text: the tokenizer's rules and EOS."""
    if tokenizer.is_fast:
        rules: Any = _rules(tokenizer.backend_tokenizer.to_str())
    else:
        rules = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    return _sha256([rules, tokenizer.eos_token_id])


def tokenizers_agree(base_folder: str | Path, ref_folder: str | Path) -> str | None:
    """Compare how base and reference tokenize text; raises `UserError` without a fast tokenizer.

    Tokens that the import of the base added for chat are ignored: packed text never contains them.

    Returns:
        None if every token of the base has the same id in the reference (which may have more) and
        both split text by the same rules; else a clause that names the first difference.
    """
    added = set(added_for_chat(base_folder))
    return rules_difference(saved_rules(base_folder), saved_rules(ref_folder), added)


def saved_rules(folder: str | Path) -> str:
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has no tokenizer.json, so its tokens cannot be compared.")
    try:
        return _read(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a fast tokenizer: {error}.") from error


def _vocab(text: str, where: str) -> dict[str, int]:
    """The ids of all tokens of a `tokenizer.json`; `where` names the file in messages."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    # The library raises only Exception itself.
    except Exception as error:
        raise UserError(f"{where} is not a fast tokenizer: {error}.") from error


def rules_difference(base_json: str, ref_json: str, added: set[str]) -> str | None:
    """Compare the contents of two `tokenizer.json`, see `tokenizers_agree`."""
    base_vocab = _vocab(base_json, "tokenizer.json of the base")
    ref_vocab = _vocab(ref_json, "tokenizer.json of the reference")
    base, ref = _rules(base_json), _rules(ref_json)
    for token, token_id in sorted(base_vocab.items(), key=lambda item: item[1]):
        if token not in added and ref_vocab.get(token) != token_id:
            other = f"id {ref_vocab[token]}" if token in ref_vocab else "no id"
            return f"token {token!r} has id {token_id} in the base and {other} in the reference"
    for part in ("normalizer", "pre_tokenizer"):
        ours, theirs = base.get(part), ref.get(part)
        if ours != theirs:
            name = part.replace("_", "-")
            return f"the {name} of the base is {ours}, that of the reference {theirs}"
    return _model_difference(base["model"], ref["model"])


def check_tokenizers(base: Path, ref: Path) -> None:
    """Refuse, by a `UserError`, a reference that tokenizes text differently from the base."""
    refuse_difference(tokenizers_agree(base, ref), str(base), ref)


def refuse_difference(difference: str | None, base: str, ref: Path) -> None:
    if difference:
        raise UserError(
            f"base {base} and reference {ref} do not share a tokenizer: {difference}. Token "
            "weights compare the two models token by token. Give a reference that has the base's "
            "tokenizer."
        )


def _model_difference(base: dict[str, Any], ref: dict[str, Any]) -> str | None:
    if base.get("type") != ref.get("type"):
        return f"the base is a {base.get('type')} tokenizer, the reference a {ref.get('type')} one"
    for name in sorted((base.keys() | ref.keys()) - {"type", "vocab", "merges"}):
        one, other = base.get(name), ref.get(name)
        # Files of older versions omit keys that are false.
        if (one or None) != (other or None):
            return f"{name} of the tokenizer is {one} in the base and {other} in the reference"
    if isinstance(base["vocab"], list) and ref["vocab"][: len(base["vocab"])] != base["vocab"]:
        return "the token scores of base and reference differ"
    ours, theirs = base.get("merges") or [], ref.get("merges") or []
    for rank, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return f"merge {rank} is {one} in the base and {other} in the reference"
    if len(ours) != len(theirs):
        return f"the base has {len(ours)} merges, the reference {len(theirs)}"
    return None


def _rules(text: str) -> dict[str, Any]:
    """Parse tokenizer.json, drop state of the last call, and write merges in one notation."""
    rules: dict[str, Any] = json.loads(text)
    for state in ("padding", "truncation"):
        rules.pop(state, None)
    if merges := rules["model"].get("merges"):
        rules["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in merges]
    return rules


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
