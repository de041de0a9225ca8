"""The text of single tokens; the texts of a document's tokens concatenate to its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"


class TokenText:
    """Texts of the tokens of one tokenizer.

    A byte-level token may hold only part of a character. The token that completes the character
    then gets its text, and the tokens before it get an empty text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # Decode each token after another one, because some decoders drop a leading space.
        self.anchor = tokenizer("a", add_special_tokens=False).input_ids
        self.anchored = len(self._decode(self.anchor))
        self.known: dict[int, str] = {}
        self.special = frozenset(tokenizer.all_special_ids)

    def alone(self, token_id: int) -> str:
        """The text of one token; the replacement character for part of a character."""
        if token_id not in self.known:
            self.known[token_id] = self._decode([*self.anchor, token_id])[self.anchored :]
        return self.known[token_id]

    def of(self, ids: Sequence[int]) -> list[str]:
        """The text of each token of a document."""
        texts = [self.alone(token_id) for token_id in ids]
        start = 0
        while start < len(texts):
            if UNFINISHED in texts[start]:
                start = self._join(ids, texts, start)
            start += 1
        return texts

    def _join(self, ids: Sequence[int], texts: list[str], start: int) -> int:
        """Join the tokens of the character that starts at `start`; return the index of the last."""
        # A UTF-8 character has at most four bytes.
        for end in range(start + 1, min(start + 4, len(ids))):
            whole = self._decode([*self.anchor, *ids[start : end + 1]])[self.anchored :]
            if UNFINISHED not in whole:
                texts[start : end + 1] = [""] * (end - start) + [whole]
                return end
        return start

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
