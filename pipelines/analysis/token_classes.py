"""Classes of tokens: digits, connectives, code, names, punctuation, other. Our own, by rules.

A token is of the class of the word or line that it is part of, so that tokenizers of characters, of
pieces of words and of whole words give the same picture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

CLASSES = ("digits", "connectives", "code", "names", "punctuation", "other")

# English words that join steps of a reasoning. A small list of ours, no resource of the field.
CONNECTIVES = frozenset([
    "therefore", "thus", "hence", "so", "because", "since", "then", "if", "else", "when", "while",
    "unless", "until", "but", "however", "although", "though", "yet", "and", "or", "not", "either",
    "neither", "nor", "both", "first", "second", "next", "finally", "also", "instead", "otherwise",
    "whereas", "where", "given", "assume", "suppose", "let", "implies",
])  # fmt: skip
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# What a line of a program begins or ends with, or has inside; prose and arithmetic have none of it.
CODE_LINE = re.compile(
    r"""^[ \t]*(?:(?:async[ ])?def[ ]\w+\(|class[ ]\w+[(:{]|import[ ][\w.]+(?:[ ]as[ ]\w+)?[ \t]*$
        |from[ ][\w.]+[ ]import\b|return\b.*[;()\[\]]|return[ ]\w+[ \t]*$
        |(?:for|if|elif|while|with|except)\b.*:[ \t]*$|(?:else|try|finally):[ \t]*$
        |@\w+|\#include\b|(?:var|let|const)[ ]\w+[ ]*=|function\b.*\()
    |[{}][ \t]*$|[])}"'];[ \t]*$|=[^;]*;[ \t]*$
    |==|!=|[-+*/]=[ ]|->|=>|::|&&|\|\||</?\w+>
    |^[ \t]*[A-Za-z_][\w.\[\]]+[ ]=[ ][A-Za-z_"'(\[{]|^(?:[ ]{4}|\t)[ \t]*[\w.]+[ ]=[ ]
    |\w\.\w+\(|\w\(\)""",
    re.VERBOSE,
)
# A document of so many lines, with such a share that looks like a program, is one as a whole.
PROGRAM_LINES, PROGRAM_SHARE = 5, 0.3
SENTENCE_END = frozenset('.!?:;\n"\u201c\u201d(')


def token_classes(tokens: Sequence[str]) -> list[str]:
    """The class of each token of a document, one of `CLASSES`.

    The first that fits: `code` (in a line that looks like a program, or
    in a document many of whose lines do), `digits`, `connectives` (a
    word of `CONNECTIVES`), `names` (a capitalised word of two letters or more that begins no
    sentence), `punctuation`, `other`. A token of several characters is what most of its characters
    without the spaces are, the first one winning a tie; white space alone is `other`.

    Args:
        tokens: texts of the tokens of one document, in order; joined they are its text.
    """
    by_character = _character_classes("".join(tokens))
    found, start = [], 0
    for token in tokens:
        own = [
            by_character[start + i] for i, character in enumerate(token) if not character.isspace()
        ]
        found.append(Counter(own).most_common(1)[0][0] if own else "other")
        start += len(token)
    return found


def _character_classes(text: str) -> list[str]:
    classes = [_alone(character) for character in text]
    for word in WORD.finditer(text):
        kind = _word_class(word, text)
        classes[word.start() : word.end()] = [kind] * (word.end() - word.start())
    start = 0
    for line, is_code in _lines(text):
        if is_code:
            classes[start : start + len(line)] = ["code"] * len(line)
        start += len(line)
    return classes


def _lines(text: str) -> list[tuple[str, bool]]:
    """The lines of a document with their ends, and whether they are code."""
    lines = text.splitlines(keepends=True)
    found = [CODE_LINE.search(line.rstrip("\r\n")) is not None for line in lines]
    filled = sum(bool(line.strip()) for line in lines)
    # In a program, comments and continued lines look like nothing in particular.
    if filled >= PROGRAM_LINES and sum(found) >= PROGRAM_SHARE * filled:
        found = [True] * len(lines)
    return list(zip(lines, found, strict=True))


def _alone(character: str) -> str:
    if character.isdigit():
        return "digits"
    return "other" if character.isalnum() or character.isspace() else "punctuation"


def _word_class(word: re.Match[str], text: str) -> str:
    if word[0].lower() in CONNECTIVES:
        return "connectives"
    if not (word[0][0].isupper() and len(word[0]) > 1):
        return "other"
    line = text[text.rfind("\n", 0, word.start()) + 1 : word.start()].rstrip(" \t")
    return "names" if line and line[-1] not in SENTENCE_END else "other"
