"""Contamination: which evaluation questions occur in the text that a model was trained on.

There are two tests, and neither is probabilistic:

- n-gram: n consecutive words of the question and its gold answer occur in a training text. n is 13
  by default, as in GPT-3 (arXiv 2005.14165, appendix C) and in lm-evaluation-harness. Words are
  compared in lower case, without punctuation and symbols.
- exact: the whole question, with or without its answer, equals a training text, one of its lines
  or one of its parts (a prompt, a field). Case, white space and punctuation at word ends are
  ignored. Signs count, since `3 - 4` and `3 + 4` are different questions. Questions shorter than n
  words get this test alone, because short word sequences match by accident.

The index holds the evaluation sets in memory; the training text is streamed once.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NGRAM = 13
MAX_EXAMPLES = 5
MAX_CHARACTERS = 500  # of a question shown as an example
# Punctuation that an exact match ignores at the beginning and end of a word.
_ENDS = ".,;:!?\"'`\u2026\u2018\u2019\u201c\u201d\u00ab\u00bb"


class Question(NamedTuple):
    """A question of an evaluation; for held-out text, a whole document without an answer."""

    id: str
    prompt: str
    answer: str = ""

    @property
    def sha256(self) -> str:
        """Hash of prompt and answer; identifies a question that must not be published."""
        return hashlib.sha256(f"{self.prompt}\n{self.answer}".encode()).hexdigest()


class Passage(NamedTuple):
    """One record of a training source.

    Attributes:
        text: searched for n-grams, and compared as a whole and line by line.
        where: returns the location, such as file and line; called only if something was found.
        parts: pieces of the record that are also compared as a whole, such as the prompt.
    """

    text: str
    where: Callable[[], str]
    parts: tuple[str, ...] = ()


def check(
    evals: Mapping[str, Iterable[Question]],
    sources: Mapping[str, Iterable[Passage]],
    *,
    n: int = NGRAM,
    unpublished: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """Look for every question in every source, in one pass over each source.

    Args:
        n: number of words in an n-gram, at least 1.
        unpublished: evaluations whose examples show only id and hash.

    Returns:
        By evaluation: `questions`, `publish`, `contaminated` (questions found by either test in any
        source), `exact`, `bits` (one per question in order, 1 if contaminated), `not_compared`
        (questions without letters or digits), `ngrams` and `ngrams_found` (distinct n-grams), and
        `sources`: by source, the number of questions found by `ngram` and by `exact`, with at most
        five `examples`.
    """
    if n < 1:
        raise ValueError(f"an n-gram needs at least 1 word, not {n}")
    index = _Index(n)
    for name, questions in evals.items():
        index.add(name, questions)
    hits = {name: index.search(passages) for name, passages in sources.items()}
    return {name: index.result(name, hits, name not in unpublished) for name in index.ranges}


# Everything but letters, digits and white space: punctuation, symbols, control characters, marks.
_DROPPED = re.compile(r"[^\w\s]+|_+")
_SPACE = re.compile(r"[^\S \n]")
_ASCII = {
    number: " " if sign.isspace() else None
    for number, sign in enumerate(map(chr, range(128)))
    if not sign.isalnum() and sign not in " \n"
}


def plain(text: str) -> str:
    """Lower-case text without punctuation and symbols; white space except newlines becomes " "."""
    text = text.lower()
    if text.isascii():
        return text.translate(_ASCII)
    return _SPACE.sub(" ", _DROPPED.sub("", text))


def exact_form(text: str) -> str:
    """Text as the exact test compares it: lower case, no punctuation at the ends of words."""
    words = (word.strip(_ENDS) for word in text.lower().split())
    return " ".join(word for word in words if word)


@dataclass
class _Hits:
    """Questions found in one source: by question number, where it was found first."""

    ngram: dict[int, tuple[str, str]] = field(default_factory=dict)
    exact: dict[int, str] = field(default_factory=dict)


class _Index:
    """The n-grams and whole texts of all evaluation questions.

    The search looks up only seeds: all sequences of s < n consecutive words of the questions. Any n
    consecutive words of a text contain exactly one s-word sequence that starts at a multiple of
    n - s + 1, so a lookup at these positions misses nothing. Around a seed that is found, whole
    n-grams are compared.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.seed_length = max(1, n // 3)
        self.stride = n - self.seed_length + 1
        self.questions: list[Question] = []
        self.ranges: dict[str, range] = {}
        self.ngrams: dict[str, list[int]] = {}
        self.seeds: set[tuple[str, ...]] = set()
        self.wholes: dict[str, list[int]] = {}
        # Whole questions without punctuation and spaces: a fast first test without misses.
        self.squeezed: set[str] = set()
        self.not_compared: set[int] = set()
        self.found: set[str] = set()

    def add(self, name: str, questions: Iterable[Question]) -> None:
        start = len(self.questions)
        for number, question in enumerate(questions, start):
            self.questions.append(question)
            self._add_whole(number, question.prompt)
            if question.answer:
                self._add_whole(number, f"{question.prompt} {question.answer}")
            words = [*map(sys.intern, plain(f"{question.prompt}\n{question.answer}").split())]
            if not words:
                self.not_compared.add(number)
            starts = range(len(words) - self.n + 1)
            for gram in dict.fromkeys(" ".join(words[i : i + self.n]) for i in starts):
                self.ngrams.setdefault(gram, []).append(number)
            if starts:
                self.seeds.update(zip(*(words[i:] for i in range(self.seed_length)), strict=False))
        self.ranges[name] = range(start, len(self.questions))

    def _add_whole(self, number: int, text: str) -> None:
        if squeezed := "".join(plain(text).split()):
            self.squeezed.add(squeezed)
            self.wholes.setdefault(exact_form(text), []).append(number)

    def search(self, passages: Iterable[Passage]) -> _Hits:
        """Search a source in one pass; text without a match costs no Python loop over its words."""
        hits, squeezed = _Hits(), self.squeezed
        for passage in passages:
            normal = plain(passage.text)
            words = normal.split()
            runs = (words[offset :: self.stride] for offset in range(self.seed_length))
            if not self.seeds.isdisjoint(zip(*runs, strict=False)):
                self._compare_ngrams(words, passage, hits)
            lines = normal.replace(" ", "").split("\n")
            wholes = [] if squeezed.isdisjoint(lines) else passage.text.split("\n")
            if "".join(lines) in squeezed:
                wholes.append(passage.text)
            for part in passage.parts:
                if plain(part).replace(" ", "").replace("\n", "") in squeezed:
                    wholes.append(part)
            for number in (n for text in wholes for n in self.wholes.get(exact_form(text), ())):
                if number not in hits.exact:
                    hits.exact[number] = passage.where()
        return hits

    def _compare_ngrams(self, words: list[str], passage: Passage, hits: _Hits) -> None:
        last = len(words) - self.n
        for place in range(0, len(words) - self.seed_length + 1, self.stride):
            if tuple(words[place : place + self.seed_length]) not in self.seeds:
                continue
            for start in range(max(0, place - self.stride + 1), min(place, last) + 1):
                gram = " ".join(words[start : start + self.n])
                for number in self.ngrams.get(gram, ()):
                    self.found.add(gram)
                    if number not in hits.ngram:
                        hits.ngram[number] = gram, passage.where()

    def result(self, name: str, hits: Mapping[str, _Hits], publish: bool) -> dict[str, Any]:
        own = self.ranges[name]
        exact = {number for hit in hits.values() for number in hit.exact}.intersection(own)
        either = exact.union(*(hit.ngram for hit in hits.values())).intersection(own)
        grams = [gram for gram, owners in self.ngrams.items() if any(o in own for o in owners)]
        return {
            "questions": len(own),
            "publish": publish,
            "contaminated": len(either),
            "exact": len(exact),
            "bits": "".join("1" if number in either else "0" for number in own),
            "not_compared": len(self.not_compared.intersection(own)),
            "ngrams": len(grams),
            "ngrams_found": len(self.found.intersection(grams)),
            "sources": {
                source: {
                    "ngram": sum(number in own for number in hit.ngram),
                    "exact": sum(number in own for number in hit.exact),
                    "examples": self._examples(own, hit, publish),
                }
                for source, hit in hits.items()
            },
        }

    def _examples(self, own: range, hit: _Hits, publish: bool) -> list[dict[str, str]]:
        """The first questions found, exact matches first; without their text unless published."""
        numbers = sorted({*hit.exact, *hit.ngram}.intersection(own))
        numbers.sort(key=lambda number: number not in hit.exact)
        examples = []
        for number in numbers[:MAX_EXAMPLES]:
            asked = self.questions[number]
            text, (gram, where) = asked.prompt, hit.ngram.get(number, ("", ""))
            if len(text) > MAX_CHARACTERS:
                text = f"{text[:MAX_CHARACTERS]} ..."
            where = hit.exact.get(number, where)
            if not publish:
                text = gram = where = ""
            example = {"id": asked.id, "question": text, "sha256": asked.sha256}
            examples.append({**example, "ngram": gram, "where": where})
        return examples
