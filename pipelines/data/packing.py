"""Packing: join documents by EOS, cut the stream into sequences, and store them on disk.

A packed set is a folder `<out_dir>/<fingerprint>/` with `tokens.bin` [num_sequences,
sequence_length], `starts.bin` (offset of each document in the token stream), `sources.bin` (source
of each document), and `complete.json`, written last. Positions are computed from the starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.data.packed_set import (
    MARKER,
    SOURCE_TYPE,
    START_TYPE,
    PackedDataset,
    read_facts,
)
from pipelines.data.records import Document, document_streams, interleave
from pipelines.errors import DamagedFile, UserError
from pipelines.models.tokenizer import encoding_fingerprint
from pipelines.recipe.schema import SourceConfig
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
_MAX_THREADS = 16
_FLUSH_TOKENS = 1 << 18
# Keys of a source that do not affect its documents.
_OTHER_KEYS = (
    "response", "chosen", "rejected", "answer", "answer_pattern", "near_miss", "reward", "licence",
    "publish",
)  # fmt: skip


def pack(
    sources: Mapping[str, SourceConfig],
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
        sources: the mixture; sources of weight 0 are ignored.
        tokenizer: must have an EOS token.
        sequence_length: tokens per sequence.
        document_mask: whether positions restart at each document, whose first token is then not a
            target.
        num_tokens: tokens wanted; rounded up to whole sequences.
        seed: seed of the data order.
        data_root: folder that relative paths start from.
        out_dir: folder of all packed sets; each has a subfolder named by its fingerprint.
        data_sha256: content hash by source, as `inspect_source` returns it.
        verify: check the checksums of an existing set, and pack it again if one differs. Only one
            rank of a stage does this.

    Raises:
        UserError: a source cannot be read or has no text, or the tokenizer has no EOS token.
    """
    live = {name: source for name, source in sources.items() if source.weight > 0}
    stream = stream_fingerprint(
        live, tokenizer, sequence_length=sequence_length, seed=seed, data_sha256=data_sha256
    )
    folder = Path(out_dir) / packing_fingerprint(stream, sequence_length, num_tokens)
    if verify:
        _drop_damaged(folder)
    if not _is_complete(folder):
        if tokenizer.eos_token_id is None:
            raise UserError(
                "packing joins documents by EOS, but the tokenizer has no EOS token. Add one to it."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=TEMPORARY))
        try:
            writer = _Writer(temporary, tokenizer, stream, sequence_length, num_tokens, list(live))
            streams = document_streams(live, data_root, seed)
            require_space(folder.parent, writer.total * writer.dtype.itemsize, "the packed data")
            writer.write(streams, {name: source.weight for name, source in live.items()})
            fail_point("before packed data is renamed")
            _publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return PackedDataset(folder, document_mask=document_mask)


def packing_fingerprint(stream: str, sequence_length: int, num_tokens: int) -> str:
    """Name of a packed set: a hash of its stream and its number of sequences."""
    return _digest([stream, -(-num_tokens // sequence_length)])


def stream_fingerprint(
    sources: Mapping[str, SourceConfig],
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    seed: int,
    data_sha256: Mapping[str, str],
) -> str:
    """Hash of everything that determines the sequences of a packed set, except their number.

    The document mask is not part of it: it changes only positions and targets, which are computed
    when the set is read.
    """
    described = []
    for name, source in sources.items():
        keys = {k: v for k, v in asdict(source).items() if k not in _OTHER_KEYS}
        if source.kind != "hub":
            del keys["path"]  # the content hash identifies the files, wherever they are stored
        described.append([name, keys, data_sha256[name]])
    everything = {
        "version": PACKING_VERSION,
        "sources": described,
        "tokenizer": encoding_fingerprint(tokenizer),
        "sequence_length": sequence_length,
        "seed": seed,
    }
    return _digest(everything)


def _digest(values: Any) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class _Count:
    """Counts for one source."""

    documents: int = 0
    tokens: int = 0
    epochs: int = 0
    empty: int = 0


class _Writer:
    """Writes the token stream of a mixture into a folder, one buffer at a time."""

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        stream: str,
        sequence_length: int,
        num_tokens: int,
        names: list[str],
    ) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.stream = stream
        self.sequence_length = sequence_length
        self.total = -(-num_tokens // sequence_length) * sequence_length
        self.dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
        self.names = names
        self.counts = {name: _Count() for name in names}

    def write(
        self, streams: Mapping[str, Iterator[Document]], weights: Mapping[str, float]
    ) -> None:
        """Write documents by token share until all sequences are full, then the marker."""
        number = {name: i for i, name in enumerate(self.names)}
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
            for document, own in interleave(encoded, weights, lambda item: len(item[1])):
                self.counts[document.source].epochs = document.epoch + 1
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
        self._mark()

    def _count(self, sources: np.ndarray, lengths: np.ndarray) -> None:
        for number, count in enumerate(self.counts.values()):
            own = lengths[sources == number]
            count.documents += int((own > 0).sum())
            count.empty += int((own == 0).sum())
            count.tokens += int(own.sum())

    def _encoded(
        self, stream: Iterator[Document], encode: Callable[[list[str]], Future[Ids]]
    ) -> Iterator[tuple[Document, list[int]]]:
        """Yield documents with their token ids, ending in EOS; an empty document has no ids."""
        eos = self.tokenizer.eos_token_id
        for batch, encoded in _ahead(_batches(stream), encode):
            heartbeat.tick()
            for document, ids in zip(batch, encoded, strict=True):
                if ids:
                    ids.append(eos)
                yield document, ids

    def _mark(self) -> None:
        counts = {name: asdict(count) for name, count in self.counts.items()}
        for count in counts.values():
            count["share"] = count["tokens"] / self.total
        files = {
            name: {
                "bytes": (self.folder / name).stat().st_size,
                "sha256": _sha256(self.folder / name),
            }
            for name in ("tokens.bin", "starts.bin", "sources.bin")
        }
        facts = {
            "packing_version": PACKING_VERSION,
            "stream": self.stream,
            "sequence_length": self.sequence_length,
            "num_sequences": self.total // self.sequence_length,
            "dtype": self.dtype.name,
            "tokens": self.total,
            "documents": sum(count.documents for count in self.counts.values()),
            "empty": sum(count.empty for count in self.counts.values()),
            "sources": counts,
            "files": files,
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


def _ahead(
    batches: Iterator[list[Document]], encode: Callable[[list[str]], Future[Ids]]
) -> Iterator[tuple[list[Document], Ids]]:
    """Yield batches with their ids, while threads encode the next batches."""
    running: deque[tuple[list[Document], Future[Ids]]] = deque()
    for batch in batches:
        running.append((batch, encode([document.text for document in batch])))
        if len(running) > _num_threads():
            done, ids = running.popleft()
            yield done, ids.result()
    for done, ids in running:
        yield done, ids.result()


def _num_threads() -> int:
    return min(_MAX_THREADS, len(os.sched_getaffinity(0)))


@contextmanager
def _encoding_threads(
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Callable[[list[str]], Future[Ids]]]:
    """Start threads that encode texts; the name of a special token in a text is plain text.

    One batch per thread is cheaper than the tokenizer's own threads within a batch, which a stage
    turns off (TOKENIZERS_PARALLELISM). All threads end on return, so the process can fork.
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
    return (folder / MARKER).is_file() and not _damaged(folder, checksums=False)


def _damaged(folder: Path, *, checksums: bool) -> list[str]:
    """Files of a set that differ from its marker, or the marker if it is damaged."""
    try:
        files = read_facts(folder)["files"]
    except DamagedFile:
        return [MARKER]
    wanted = {name: (facts["bytes"], facts["sha256"]) for name, facts in files.items()}
    return [
        name
        for name, (size, digest) in wanted.items()
        if not (folder / name).is_file()
        or (folder / name).stat().st_size != size
        or (checksums and _sha256(folder / name) != digest)
    ]


def _drop_damaged(folder: Path) -> None:
    """Remove a set with files that differ from its marker by size or checksum, and name them."""
    if not (folder / MARKER).is_file():
        return
    bad = _damaged(folder, checksums=True)
    if bad:
        names = ", ".join(str(folder / name) for name in bad)
        print(f"{names}: damaged (size or checksum); packing the set again", flush=True)
        (folder / MARKER).unlink()
        shutil.rmtree(folder)


def _publish(temporary: Path, folder: Path) -> None:
    """Move a finished set to its folder, unless another process has put a complete one there."""
    if folder.exists() and not _is_complete(folder):
        shutil.rmtree(folder)
    try:
        os.rename(temporary, folder)
    except OSError:
        if not _is_complete(folder):
            raise


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
