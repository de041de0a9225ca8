"""Typed views of a mixture: documents, conversations, preference pairs and problems.

Sources are mixed deterministically (`interleave`). A finite source that runs out starts again in a
new order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count as counter
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pipelines.data.near_miss import near_miss
from pipelines.data.sources import Record, Records, open_source
from pipelines.data.templates import filled, source_text
from pipelines.errors import UserError
from pipelines.recipe.schema import SourceConfig, is_endless

Item = TypeVar("Item")
Mixture = Mapping[str, SourceConfig]


@dataclass(frozen=True)
class Document:
    """A text to pre-train on. `epoch` counts the passes over its source, from 0."""

    text: str
    source: str
    domain: str
    epoch: int = 0


@dataclass(frozen=True)
class Conversation:
    """A prompt with its right answer."""

    prompt: str
    response: str
    source: str


@dataclass(frozen=True)
class Pair:
    """A prompt with a preferred and a rejected answer."""

    prompt: str
    chosen: str
    rejected: str
    source: str


@dataclass(frozen=True)
class Problem:
    """A prompt whose answer a reward can judge; `record` is the complete source record."""

    prompt: str
    answer: str
    reward: str
    source: str
    record: Record = field(repr=False)


def interleave(
    streams: Mapping[str, Iterator[Item]],
    weights: Mapping[str, float],
    cost: Callable[[Item], float],
) -> Iterator[Item]:
    """Merge streams so that the summed cost of each is proportional to its weight.

    The next item always comes from the stream with the largest deficit, which is its share of the
    total minus the cost of its items so far. Ties go to the first stream. A stream that ends is
    dropped.
    """
    live = dict(streams)
    given = dict.fromkeys(live, 0.0)
    while len(live) > 1:
        weight_sum = sum(weights[name] for name in live)
        total = sum(given[name] for name in live)
        name = max(live, key=lambda n: weights[n] / weight_sum * total - given[n])
        try:
            item = next(live[name])
        except StopIteration:
            del live[name]
            continue
        given[name] += cost(item)
        yield item
    for last in live.values():
        yield from last


def document_streams(
    sources: Mixture, data_root: str | Path, seed: int, *, repeat: bool = True
) -> dict[str, Iterator[Document]]:
    """One stream of documents per source with a weight above 0; empty documents are included.

    With `repeat` the streams are endless; without it, each finite source is read once.

    Raises:
        UserError: no source has a weight above 0, or (while iterating) a record lacks a field or a
            source has only empty documents.
    """
    return _streams(sources, data_root, seed, _document, repeat=repeat)


def documents(
    sources: Mixture, data_root: str | Path, seed: int, *, repeat: bool = True
) -> Iterator[Document]:
    """Non-empty documents of a mixture, mixed by share of characters; see `document_streams`."""
    streams = document_streams(sources, data_root, seed, repeat=repeat)
    merged = interleave(streams, _weights(sources), lambda document: len(document.text))
    return (document for document in merged if document.text)


def conversations(
    sources: Mixture, data_root: str | Path, seed: int, count: int = 0
) -> list[Conversation]:
    """Return `count` conversations of a mixture (finite sources repeat); 0 reads each source once.

    Raises:
        UserError: a record lacks a prompt, a response or a field (the message names file and line),
            or `count` is 0 and a source is endless.
    """
    return _take(sources, data_root, seed, count, _conversation)


def pairs(sources: Mixture, data_root: str | Path, seed: int, count: int = 0) -> list[Pair]:
    """Return `count` preference pairs of a mixture; 0 reads each source once.

    Records with two equal answers are skipped and, with `near_miss`, records whose response has no
    number. Raises as `conversations` does.
    """
    return _take(sources, data_root, seed, count, _pair)


def conversation_passes(
    sources: Mixture, data_root: str | Path, seed: int
) -> Iterator[list[Conversation]]:
    """Pass after pass over all records of all sources, each in a new seeded order.

    Raises as `conversations` with `count` = 0.
    """
    return _each_pass(sources, data_root, seed, _conversation)


def pair_passes(sources: Mixture, data_root: str | Path, seed: int) -> Iterator[list[Pair]]:
    """The same for preference pairs; see `pairs` for what is left out."""
    return _each_pass(sources, data_root, seed, _pair)


def problems(sources: Mixture, data_root: str | Path, seed: int, count: int = 0) -> list[Problem]:
    """Return `count` problems of a mixture; 0 reads each source once. Raises as `conversations`."""
    return _take(sources, data_root, seed, count, _problem)


# Makes an item of a record, its source, its index in the source and the pass; None leaves it out.
_View = Callable[[Record, Records, int, int], Item | None]


def _document(record: Record, records: Records, index: int, epoch: int) -> Document:
    text = source_text(records.source.text, record, records.source)
    domain = record.get("domain")
    if not (isinstance(domain, str) and domain):
        domain = records.name
    return Document(text if text.strip() else "", records.name, domain, epoch)


def _conversation(record: Record, records: Records, index: int, epoch: int) -> Conversation:
    prompt, response = (filled(part, record, records.source) for part in ("prompt", "response"))
    return Conversation(prompt, response, records.name)


def _pair(record: Record, records: Records, index: int, epoch: int) -> Pair | None:
    source = records.source
    prompt = filled("prompt", record, source)
    chosen = filled("response" if source.near_miss else "chosen", record, source)
    rejected: str | None
    if source.near_miss:
        # The same mistake in every pass.
        rejected = near_miss(chosen, random.Random(f"{records.seed}:{records.name}:{index}"))
    else:
        rejected = filled("rejected", record, source)
    return Pair(prompt, chosen, rejected, records.name) if rejected not in (None, chosen) else None


def _problem(record: Record, records: Records, index: int, epoch: int) -> Problem:
    source = records.source
    prompt, answer = (filled(part, record, source) for part in ("prompt", "answer"))
    return Problem(prompt, answer, source.reward, records.name, record)


def _weights(sources: Mixture) -> dict[str, float]:
    weights = {name: source.weight for name, source in sources.items() if source.weight > 0}
    if not weights:
        raise UserError("no data source has a weight above 0. Set the weight of at least one.")
    return weights


def _streams(
    sources: Mixture, data_root: str | Path, seed: int, view: _View[Item], *, repeat: bool
) -> dict[str, Iterator[Item]]:
    return {
        name: _items(
            open_source(name, sources[name], data_root, seed), view, counter() if repeat else [0]
        )
        for name in _weights(sources)
    }


def _items(records: Records, view: _View[Item], epochs: Iterable[int]) -> Iterator[Item]:
    for epoch in epochs:
        useful = False
        for index, record in records.iterate(epoch):
            try:
                item = view(record, records, index, epoch)
            except UserError as error:
                where = records.locate(index)
                raise UserError(f"source '{records.name}', {where}: {error}") from error
            if item is not None:
                useful = useful or not (isinstance(item, Document) and not item.text)
                yield item
        if not useful:
            raise UserError(f"source '{records.name}': none of its records can be used")


def _take(
    sources: Mixture, data_root: str | Path, seed: int, count: int, view: _View[Item]
) -> list[Item]:
    if not count:
        _check_ends(sources)
    streams = _streams(sources, data_root, seed, view, repeat=count > 0)
    merged = interleave(streams, _weights(sources), lambda item: 1.0)
    return list(islice(merged, count or None))


def _each_pass(
    sources: Mixture, data_root: str | Path, seed: int, view: _View[Item]
) -> Iterator[list[Item]]:
    _check_ends(sources)
    opened = [open_source(name, sources[name], data_root, seed) for name in _weights(sources)]
    for epoch in counter():
        items = [item for records in opened for item in _items(records, view, [epoch])]
        random.Random(f"{seed}:{epoch}").shuffle(items)
        yield items


def _check_ends(sources: Mixture) -> None:
    for name in _weights(sources):
        if is_endless(sources[name]):
            raise UserError(f"source '{name}' is endless. Set its limit.")


def fill_steps(passes: Iterator[list[Item]], num_items: Callable[[int], int]) -> list[Item]:
    """The items of whole passes and the first of one more, `num_items(items in a pass)` in all."""
    drawn = list(next(passes))
    wanted = num_items(len(drawn))
    while drawn and len(drawn) < wanted:
        drawn += next(passes)
    return drawn[:wanted]
