"""Token classes by our rules: digits, connectives, code, names, punctuation, other.

A token gets the class of the word or line that contains it, so that character, subword and word
tokenizers give comparable results.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

CLASSES = ("digits", "connectives", "code", "names", "punctuation", "other")

# English words that connect steps of reasoning: a small list of ours, not a published resource.
CONNECTIVES = frozenset([
    "therefore", "thus", "hence", "so", "because", "since", "then", "if", "else", "when", "while",
    "unless", "until", "but", "however", "although", "though", "yet", "and", "or", "not", "either",
    "neither", "nor", "both", "first", "second", "next", "finally", "also", "instead", "otherwise",
    "whereas", "where", "given", "assume", "suppose", "let", "implies",
])  # fmt: skip
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Patterns that occur in lines of programs, but not in prose or arithmetic.
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
# A document with at least this many lines, of which this fraction looks like code, is a program.
PROGRAM_LINES, PROGRAM_SHARE = 5, 0.3
SENTENCE_END = frozenset('.!?:;\n"\u201c\u201d(')


def token_classes(tokens: Sequence[str]) -> list[str]:
    """Assign each token of a document, given by its text, to one of `CLASSES`.

    The first matching class applies: `code` (in a line that looks like code, or in a document with
    many such lines), `digits`, `connectives` (a word of `CONNECTIVES`), `names` (a capitalised word
    of two letters or more that does not begin a sentence), `punctuation`, `other`. A token of
    several characters gets the class of most of its characters, ignoring spaces; ties go to the
    first class. White space alone is `other`.
    """
    classes, found = iter(_character_classes("".join(tokens))), []
    for token in tokens:
        pairs = zip(token, classes, strict=False)
        own = Counter(kind for character, kind in pairs if not character.isspace())
        found.append(own.most_common(1)[0][0] if own else "other")
    return found


def _character_classes(text: str) -> list[str]:
    classes = [_alone(character) for character in text]
    for word in WORD.finditer(text):
        classes[word.start() : word.end()] = [_word_class(word, text)] * len(word[0])
    lines, start = text.splitlines(keepends=True), 0
    is_code = [CODE_LINE.search(line.rstrip("\r\n")) is not None for line in lines]
    filled = sum(bool(line.strip()) for line in lines)
    # Comments and continuation lines of a program do not look like code by themselves.
    is_program = filled >= PROGRAM_LINES and sum(is_code) >= PROGRAM_SHARE * filled
    for line, own in zip(lines, is_code, strict=True):
        if own or is_program:
            classes[start : start + len(line)] = ["code"] * len(line)
        start += len(line)
    return classes


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
