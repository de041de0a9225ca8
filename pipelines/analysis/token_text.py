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
        self.anchor, self.anchored = tokenizer("a", add_special_tokens=False).input_ids, 0
        self.anchored = len(self._decode([]))
        self.known: dict[int, str] = {}
        self.special = frozenset(tokenizer.all_special_ids)

    def alone(self, token_id: int) -> str:
        """The text of one token; the replacement character for part of a character."""
        if token_id not in self.known:
            self.known[token_id] = self._decode([token_id])
        return self.known[token_id]

    def of(self, ids: Sequence[int]) -> list[str]:
        """The text of each token of a document."""
        texts = [self.alone(token_id) for token_id in ids]
        for start in range(len(texts)):
            # A UTF-8 character has at most four bytes.
            for end in range(start + 1, min(start + 4, len(ids))):
                if UNFINISHED not in texts[start]:
                    break
                whole = self._decode(ids[start : end + 1])
                if UNFINISHED not in whole:
                    texts[start : end + 1] = [""] * (end - start) + [whole]
        return texts

    def _decode(self, ids: Sequence[int]) -> str:
        """Decode tokens after the anchor, because some decoders drop a leading space."""
        text: str = self.tokenizer.decode(
            [*self.anchor, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text[self.anchored :]
