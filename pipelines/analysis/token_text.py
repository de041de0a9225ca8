"""The text of single tokens, such that the texts of a document's tokens join to its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"


class TokenText:
    """Texts of tokens of one tokenizer.

    A byte-level token may hold a part of a character: the text of the whole is then given to the
    token that completes it, and the others have none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # Behind another token, because some decoders drop the space that a text begins with.
        self.anchor = tokenizer("a", add_special_tokens=False).input_ids
        self.anchored = len(self._decode(self.anchor))
        self.known: dict[int, str] = {}
        self.special = frozenset(tokenizer.all_special_ids)

    def alone(self, token_id: int) -> str:
        """The text of one token; the replacement character for a part of one."""
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
        """Join the tokens of one character from `start` on; the last of them."""
        # A character has four bytes at most.
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
