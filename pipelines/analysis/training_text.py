"""The first sequences of a packed set as text: the document, domain and class of each token."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.analysis.token_classes import token_classes
from pipelines.analysis.token_text import TokenText
from pipelines.data.packed_set import PackedDataset
from pipelines.data.records import document_streams
from pipelines.recipe.schema import SourceConfig


@dataclass(frozen=True)
class Span:
    """One document, at its token positions; the last one may be cut where the sequences end.

    Attributes:
        number: index of the document in the order of its source, from 0.
        domain: domain named by its record, else the name of the source.
    """

    start: int
    stop: int
    source: str
    number: int
    domain: str


@dataclass(frozen=True)
class TrainingText:
    """Tokens of the first sequences of a packed set, with one entry per token.

    Attributes:
        ids: int64 [tokens].
        spans: the documents, in order and without gaps.
    """

    ids: np.ndarray
    texts: list[str]
    classes: list[str]
    spans: list[Span]
    sequence_length: int

    @property
    def domains(self) -> list[str]:
        """The domain of each token."""
        return [span.domain for span in self.spans for _ in range(span.start, span.stop)]

    def published(self, sources: Mapping[str, SourceConfig]) -> np.ndarray:
        """Whether each token comes from a source whose text may be shown, bool [tokens]."""
        shown = [sources[span.source].publish for span in self.spans]
        return np.repeat(shown, [span.stop - span.start for span in self.spans])


def read_training_text(
    dataset: PackedDataset,
    num_sequences: int,
    text: TokenText,
    sources: Mapping[str, SourceConfig],
    data_root: str | Path,
    seed: int,
) -> TrainingText:
    """Read the first `num_sequences` sequences of a packed set.

    A packed set stores only the source of each document. Its domain is read from the sources again,
    whose order depends only on the seed. They must be the mixture that was packed, and `text` must
    have the tokenizer that packed it.
    """
    ids = np.concatenate([dataset[index]["input_ids"] for index in range(num_sequences)])
    spans = read_spans(dataset, num_sequences, sources, data_root, seed)
    texts, classes = [], []
    for span in spans:
        own_ids = ids[span.start : span.stop].tolist()
        texts += text.of(own_ids)
        # Special tokens are not part of the text.
        words = zip(own_ids, texts[span.start :], strict=True)
        classes += token_classes(["" if i in text.special else word for i, word in words])
    return TrainingText(ids, texts, classes, spans, dataset.sequence_length)


def read_spans(
    dataset: PackedDataset,
    num_sequences: int,
    sources: Mapping[str, SourceConfig],
    data_root: str | Path,
    seed: int,
) -> list[Span]:
    """The documents of the first `num_sequences` sequences, see `read_training_text`."""
    streams = document_streams(sources, data_root, seed)
    filled = {name: enumerate(d for d in stream if d.text) for name, stream in streams.items()}
    spans = []
    for start, stop, source in dataset.spans(num_sequences):
        number, document = next(filled[source])
        spans.append(Span(start, stop, source, number, document.domain))
    return spans


def domain_shares(spans: list[Span], chosen: np.ndarray, sequence_length: int) -> dict[str, Any]:
    """Token share of each domain, in all sequences and in those whose indices are chosen."""
    number = {domain: i for i, domain in enumerate(sorted({span.domain for span in spans}))}
    of_token = np.repeat([number[s.domain] for s in spans], [s.stop - s.start for s in spans])
    rows = of_token.reshape(-1, sequence_length)
    pool, kept = (
        np.bincount(part.reshape(-1), minlength=len(number)) / max(1, part.size)
        for part in (rows, rows[chosen])
    )
    return {
        domain: {"pool": round(float(pool[i]), 4), "kept": round(float(kept[i]), 4)}
        for domain, i in number.items()
    }


def target_rows(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Move values from the position that predicts a target to the target token itself.

    Both arrays are [sequences, context]; the mask is true where the position has a target. Returns
    float32 [sequences * context]; NaN for a token that is not a target.
    """
    moved = np.full(values.shape, np.nan, dtype=np.float32)
    moved[:, 1:] = np.where(mask, values, np.nan)[:, :-1]
    return moved.reshape(-1)


def excerpts(
    text: TrainingText,
    sources: Mapping[str, SourceConfig],
    values: Mapping[str, np.ndarray],
    *,
    count: int = 20,
    longest: int = 512,
    shortest: int = 8,
) -> list[dict[str, Any]]:
    """Select excerpts of documents from all domains, with a value for each token.

    An excerpt lies within one document and one packed sequence, over which weights are centred. For
    a source with `publish: false` it has the position and hash of the text, but no text or ids. It
    has `shortest` to `longest` tokens. The values are [tokens], see `target_rows`.
    """
    found = []
    for span, start, stop in _spread(text, count, longest, shortest):
        source, words = sources[span.source], text.texts[start:stop]
        piece = {
            "source": span.source,
            "domain": span.domain,
            "licence": source.licence or ("built-in world" if source.kind == "world" else ""),
            "publish": source.publish,
            "document": span.number,
            "tokens": words if source.publish else [],
        }
        if not source.publish:
            piece["sha256"] = hashlib.sha256("".join(words).encode()).hexdigest()
        for name, numbers in values.items():
            piece[name] = [None if np.isnan(x) else round(float(x), 4) for x in numbers[start:stop]]
        found.append(piece)
    return found


def _spread(
    text: TrainingText, count: int, longest: int, shortest: int
) -> list[tuple[Span, int, int]]:
    """Select `count` excerpts, split evenly over the domains and spread over each one's text."""
    by_domain: dict[str, list[tuple[Span, int, int]]] = {}
    for span in text.spans:
        # Take the part in the document's first sequence or, if that is too short, in the next.
        end_of_row = (span.start // text.sequence_length + 1) * text.sequence_length
        start = span.start if min(span.stop, end_of_row) - span.start >= shortest else end_of_row
        stop = min(span.stop, (start // text.sequence_length + 1) * text.sequence_length)
        if stop - start >= shortest:
            own = by_domain.setdefault(span.domain, [])
            own.append((span, start, min(stop, start + longest)))
    chosen: list[tuple[Span, int, int]] = []
    for number, (_, pieces) in enumerate(sorted(by_domain.items())):
        share = (count - number - 1) // len(by_domain) + 1 if number < count else 0
        places = np.linspace(0, len(pieces) - 1, min(share, len(pieces))).round().astype(int)
        chosen += [pieces[place] for place in dict.fromkeys(places.tolist())]
    return sorted(chosen, key=lambda piece: piece[1])
