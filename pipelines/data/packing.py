"""Packing: join documents by EOS, cut the stream into sequences, and store them on disk.

A packed set is a folder `<out_dir>/<fingerprint>/` with `tokens.bin` [num_sequences,
sequence_length], `starts.bin` (offset of each document in the token stream), `sources.bin` (source
of each document), and `complete.json`, written last. Positions are computed from the starts.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.packed_set import (
    MARKER,
    SOURCE_TYPE,
    START_TYPE,
    PackedDataset,
    damaged_files,
    file_facts,
    placed,
    read_facts,
    short_hash,
)
from pipelines.data.records import Document, Mixture, document_streams, interleave
from pipelines.errors import DamagedFile, UserError
from pipelines.models.tokenizer import encoding_fingerprint
from pipelines.run_dir import heartbeat
from pipelines.run_dir.disk import require_space
from pipelines.run_dir.fail_points import fail_point
from pipelines.run_dir.markers import write_marker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Ids = list[list[int]]

# Prefix of folders that are still being written; a killed process leaves them behind.
TEMPORARY = ".packing-"

# Increase this when the same inputs give different tokens.
PACKING_VERSION = 1

# Batch that a thread encodes at a time, small enough for its core's cache.
_BATCH_DOCUMENTS = 128
_BATCH_CHARACTERS = 1 << 17
_FLUSH_TOKENS = 1 << 18
# Keys of a source that do not affect its documents.
_OTHER_KEYS = (
    "response", "chosen", "rejected", "answer", "answer_pattern", "near_miss", "reward", "licence",
    "publish",
)  # fmt: skip


def pack(
    sources: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    document_mask: bool,
    num_tokens: int,
    seed: int,
    data_root: str | Path,
    out_dir: str | Path,
    data_sha256: Mapping[str, str],
    verify: bool = True,
) -> PackedDataset:
    """Pack a mixture by token share, or open the set that an identical call packed before.

    Args:
        document_mask: whether positions restart at each document, whose first token is then not a
            target.
        num_tokens: tokens wanted; rounded up to whole sequences.
        out_dir: folder of all packed sets; each has a subfolder named by its fingerprint.
        data_sha256: content hash by source, as `inspect_source` returns it.
        verify: check the checksums of an existing set, and pack it again if one differs. Only one
            rank of a stage does this.

    Raises:
        UserError: a source cannot be read or has no text, or the tokenizer has no EOS token.
    """
    live = {name: source for name, source in sources.items() if source.weight > 0}
    stream = _stream_fingerprint(live, tokenizer, sequence_length, seed, data_sha256)
    num_sequences = -(-num_tokens // sequence_length)
    folder = Path(out_dir) / short_hash([stream, num_sequences])
    if verify:
        _drop_damaged(folder)
    if not _is_complete(folder):
        if tokenizer.eos_token_id is None:
            raise UserError(
                "packing joins documents by EOS, but the tokenizer has no EOS token. Add one to it."
            )
        with placed(folder, TEMPORARY, _is_complete) as temporary:
            writer = _Writer(temporary, tokenizer, num_sequences * sequence_length, live)
            streams = document_streams(live, data_root, seed)
            require_space(folder.parent, writer.total * writer.dtype.itemsize, "the packed data")
            writer.write(streams)
            writer.mark(stream, sequence_length)
            fail_point("before packed data is renamed")
    return PackedDataset(folder, document_mask=document_mask)


def _stream_fingerprint(
    sources: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    seed: int,
    data_sha256: Mapping[str, str],
) -> str:
    """Hash of all that determines the sequences of a packed set, except their number.

    The document mask changes only positions and targets, which are computed when the set is read.
    """
    described = []
    for name, source in sources.items():
        keys = {k: v for k, v in asdict(source).items() if k not in _OTHER_KEYS}
        if source.kind != "hub":
            del keys["path"]  # the content hash identifies the files, wherever they are stored
        described.append([name, keys, data_sha256[name]])
    return short_hash({
        "version": PACKING_VERSION,
        "sources": described,
        "tokenizer": encoding_fingerprint(tokenizer),
        "sequence_length": sequence_length,
        "seed": seed,
    })  # fmt: skip


class _Writer:
    """Writes the token stream of a mixture into a folder, one buffer at a time."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, total: int, sources: Mixture
    ) -> None:
        self.folder, self.tokenizer, self.total = folder, tokenizer, total
        self.dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
        self.weights = {name: source.weight for name, source in sources.items()}
        kinds = ("documents", "tokens", "epochs", "empty")
        self.counts = {name: dict.fromkeys(kinds, 0) for name in sources}

    def write(self, streams: Mapping[str, Iterator[Document]]) -> None:
        """Write documents by token share until all sequences are full."""
        number = {name: i for i, name in enumerate(self.counts)}
        written = pending = 0
        buffer: Ids = []
        origins: list[int] = []
        with (
            open(self.folder / "tokens.bin", "wb") as tokens_file,
            open(self.folder / "starts.bin", "wb") as starts_file,
            open(self.folder / "sources.bin", "wb") as sources_file,
            _encoding_threads(self.tokenizer) as encode,
        ):
            encoded = {name: self._encoded(stream, encode) for name, stream in streams.items()}
            for document, own in interleave(encoded, self.weights, lambda item: len(item[1])):
                self.counts[document.source]["epochs"] = document.epoch + 1
                origins.append(number[document.source])
                buffer.append(own)
                pending += len(own)
                if pending < min(_FLUSH_TOKENS, self.total - written):
                    continue
                ends = np.minimum(written + np.cumsum([*map(len, buffer)]), self.total)
                starts = np.concatenate([[written], ends[:-1]])
                sources = np.array(origins, dtype=SOURCE_TYPE)
                filled = ends > starts
                ids = np.fromiter(chain.from_iterable(buffer), self.dtype, pending)
                ids[: self.total - written].tofile(tokens_file)
                starts[filled].astype(START_TYPE).tofile(starts_file)
                sources[filled].tofile(sources_file)
                fail_point("while packed data is written")
                self._count(sources, ends - starts)
                written = int(ends[-1])
                buffer, origins, pending = [], [], 0
                logger.info("packed %d of %d tokens", written, self.total)
                if written == self.total:
                    break
            else:
                raise RuntimeError("the documents ended before all sequences were full")

    def _count(self, sources: np.ndarray, lengths: np.ndarray) -> None:
        for number, count in enumerate(self.counts.values()):
            own = lengths[sources == number]
            count["documents"] += int((own > 0).sum())
            count["empty"] += int((own == 0).sum())
            count["tokens"] += int(own.sum())

    def _encoded(
        self, stream: Iterator[Document], encode: Callable[[list[str]], Future[Ids]]
    ) -> Iterator[tuple[Document, list[int]]]:
        """Documents with their ids, which end in EOS (none if empty); threads encode ahead."""
        eos = self.tokenizer.eos_token_id
        running: deque[tuple[list[Document], Future[Ids]]] = deque()

        def finished() -> Iterator[tuple[Document, list[int]]]:
            batch, encoded = running.popleft()
            heartbeat.tick()
            for document, ids in zip(batch, encoded.result(), strict=True):
                yield document, [*ids, eos] if ids else ids

        for batch in _batches(stream):
            running.append((batch, encode([document.text for document in batch])))
            if len(running) > _num_threads():
                yield from finished()
        while running:
            yield from finished()

    def mark(self, stream: str, sequence_length: int) -> None:
        """Write the marker."""
        facts = {
            "packing_version": PACKING_VERSION,
            "stream": stream,
            "sequence_length": sequence_length,
            "num_sequences": self.total // sequence_length,
            "dtype": self.dtype.name,
            "tokens": self.total,
            "documents": sum(count["documents"] for count in self.counts.values()),
            "empty": sum(count["empty"] for count in self.counts.values()),
            "sources": {
                name: {**count, "share": count["tokens"] / self.total}
                for name, count in self.counts.items()
            },
            "files": {
                name: file_facts(self.folder / name)
                for name in ("tokens.bin", "starts.bin", "sources.bin")
            },
        }
        write_marker(self.folder / MARKER, facts)


def _batches(stream: Iterator[Document]) -> Iterator[list[Document]]:
    # Start with short batches, so that a small set does not encode documents that it never uses.
    size = 16
    while True:
        batch: list[Document] = []
        characters = 0
        for document in islice(stream, size):
            batch.append(document)
            characters += len(document.text)
            if characters >= _BATCH_CHARACTERS:
                break
        if not batch:
            return
        yield batch
        size = min(2 * size, _BATCH_DOCUMENTS)


def _num_threads() -> int:
    return min(16, len(os.sched_getaffinity(0)))


@contextmanager
def _encoding_threads(
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Callable[[list[str]], Future[Ids]]]:
    """Threads that encode texts; the name of a special token in a text is plain text.

    One batch per thread is cheaper than the tokenizer's own threads (TOKENIZERS_PARALLELISM), which
    a stage turns off. All threads end on return, so the process can fork.
    """
    if not tokenizer.is_fast:
        with ThreadPoolExecutor(1) as pool:
            yield lambda texts: pool.submit(
                lambda: tokenizer(texts, add_special_tokens=False)["input_ids"]
            )
        return
    backend = tokenizer.backend_tokenizer

    def encode(texts: list[str]) -> Ids:
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        with ThreadPoolExecutor(_num_threads()) as pool:
            yield lambda texts: pool.submit(encode, texts)
    finally:
        backend.encode_special_tokens = before


def _is_complete(folder: Path) -> bool:
    """Whether a set is complete, judged by file sizes only."""
    with suppress(DamagedFile, FileNotFoundError):
        files = read_facts(folder)["files"].items()
        return all((folder / name).stat().st_size == facts["bytes"] for name, facts in files)
    return False


def _drop_damaged(folder: Path) -> None:
    """Remove a set with files that differ from its marker by size or checksum, and name them."""
    if not (folder / MARKER).is_file():
        return
    try:
        bad = damaged_files(folder, read_facts(folder)["files"])
    except DamagedFile:
        bad = [MARKER]
    if bad:
        names = ", ".join(str(folder / name) for name in bad)
        print(f"{names}: damaged (size or checksum); packing the set again", flush=True)
        (folder / MARKER).unlink()
        shutil.rmtree(folder)
