"""Inspect data sources, so that every error in them is found before a stage starts.

The launcher runs this without torch. Each file is read once in full; the result is cached by path,
size and modification time.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import IO, Any

from pipelines import world
from pipelines.data import templates
from pipelines.data.sources import (
    UNITS,
    Record,
    is_kept,
    json_record,
    open_source,
    resolve_files,
)
from pipelines.errors import DamagedFile, UserError
from pipelines.models.checkpoint import file_sha256
from pipelines.recipe.schema import SourceConfig
from pipelines.recipe.schema.training import Records as RecordKind
from pipelines.run_dir.markers import read_marker, write_marker

# The templates of a source that its records must fit.
_PARTS = {
    "documents": ("text",),
    "conversations": ("prompt", "response"),
    "pairs": ("prompt", "chosen", "rejected"),
    "problems": ("prompt", "answer"),
}


@dataclass(frozen=True)
class SourceFacts:
    """Facts about a source. For world and hub, there are no files, and 0 bytes and records."""

    files: list[str]  # absolute paths in reading order
    bytes: int
    sha256: str  # of the files' content; for world and hub, of the names that identify the data
    records: int  # before any filter
    # That pass the filters and `limit`; 0 for documents, a hub, and a world stream without limit.
    kept: int = 0


def inspect_source(
    key: str,
    source: SourceConfig,
    data_root: str | Path,
    use: RecordKind,
    cache_path: Path | None = None,
    *,
    needs: str = "",
) -> SourceFacts:
    """Check that a stage can use a source.

    Args:
        key: key of the source in the configuration, for messages.
        use: kind of record, which decides the templates that must fit.
        cache_path: JSON file that caches facts about files already read.
        needs: an additional field that every record must have; empty for none.

    Raises:
        UserError: a file (with its line), world stream, hub data set or regular expression cannot
            be read, or a record lacks a field or a gold answer.
    """
    name = key.rpartition(".")[2]
    try:
        templates.pattern(source.strip, "strip")
        if source.answer_pattern:
            templates.pattern(source.answer_pattern, "answer_pattern")
        for part in _parts(source, use):
            templates.compiled(getattr(source, part))
        if source.kind not in ("world", "hub"):
            files = resolve_files(name, source, data_root)
            return _inspect_files(files, source, use, cache_path, needs)
        # This downloads the data of a hub to its cache on disk, where the stages find it.
        records: Iterable[Record] = open_source(name, source, data_root, 0)
        if source.kind == "world":
            records, where = islice(records, 1), f"world stream '{source.stream}'"
            identity, kept = f"world:{world.WORLD_VERSION}:{source.stream}", source.limit
        else:
            where = f"{source.path}, a record of split {source.split}"
            identity, kept = f"hub:{source.path}:{source.name}:{source.split}", 0
        _check_records(((where, record) for record in records), source, use, needs)
        return SourceFacts([], 0, hashlib.sha256(identity.encode()).hexdigest(), 0, kept)
    except UserError as error:
        said = str(error).removeprefix(f"source '{name}': ")  # the key ends with this name
        raise UserError(f"{key}: {said}") from error


def _inspect_files(
    files: list[Path], source: SourceConfig, use: RecordKind, cache: Path | None, needs: str
) -> SourceFacts:
    known: dict[str, dict[str, Any]] = {}
    if cache and cache.is_file():
        # If the cache is damaged, scan again.
        with contextlib.suppress(DamagedFile):
            known = read_marker(cache, {})
    entries, scans = dict(known), []
    for path in files:
        key, stat = f"{source.kind}:{path.resolve()}", path.stat()
        now = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if not now.items() <= entries.get(key, {}).items():
            entries[key] = {**_scan(path, source), **now}
        scans.append(entries[key])
    content = hashlib.sha256(b"".join(bytes.fromhex(scan["sha256"]) for scan in scans)).hexdigest()
    settings = json.dumps(asdict(source), sort_keys=True)
    checks = hashlib.sha256(f"{use} {needs} {settings} {content}".encode()).hexdigest()
    checked = f"checked:{checks}"
    if checked not in entries:
        unit = UNITS.get(source.kind, "record")
        found = (
            (f"{path}, {unit} {number}", record)
            for path in files
            for number, record in _records(path, source)
        )
        entries[checked] = {"kept": _check_records(found, source, use, needs)}
    if cache and entries != known:
        write_marker(cache, entries)
    return SourceFacts(
        files=[str(path) for path in files],
        bytes=sum(scan["size"] for scan in scans),
        sha256=content,
        records=sum(scan["records"] for scan in scans),
        kept=0 if use == "documents" else entries[checked]["kept"],
    )


def _check_records(
    found: Iterable[tuple[str, Record]], source: SourceConfig, use: RecordKind, needs: str
) -> int:
    """Check all records that pass the filters (of documents, only the first) and count them."""
    first: Record | None = None
    passed = 0
    for where, record in found:
        first = first or record
        try:
            if not is_kept(record, source):
                continue
            if needs and needs not in record:
                raise UserError(f"the record has no field '{needs}'; it has {', '.join(record)}")
            if use == "documents":
                # A corpus is too large to render twice, and its empty documents are valid.
                templates.source_text(source.text, record, source)
                return 1
            for part in _parts(source, use):
                templates.filled(part, record, source)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        passed += 1
        if passed == source.limit:
            break
    if not passed:
        hint = f" The first record is {str(first)[:300]}" if source.filter else ""
        raise UserError(f"no record passes filter = {dict(source.filter)} and hash_range.{hint}")
    return passed


def _parts(source: SourceConfig, use: RecordKind) -> tuple[str, ...]:
    # A near miss is made from the response.
    return _PARTS["conversations" if use == "pairs" and source.near_miss else use]


def _records(path: Path, source: SourceConfig) -> Iterator[tuple[int, Record]]:
    """Yield the records of one file, numbered from 1."""
    if source.kind == "parquet":
        yield from _parquet_records(path)
    elif source.kind == "jsonl":
        yield from _json_records(path)
    else:
        yield from _paragraphs(path)


def _open(path: Path) -> IO[bytes]:
    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8: {error}") from error


def _json_records(path: Path) -> Iterator[tuple[int, Record]]:
    for number, line in _lines(path):
        if line.isspace():
            continue
        try:
            yield number, json_record(line)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error


def _paragraphs(path: Path) -> Iterator[tuple[int, Record]]:
    runs = groupby((line for _, line in _lines(path)), key=lambda line: line.rstrip("\r\n") != "")
    texts = ("".join(lines).rstrip("\r\n") for filled, lines in runs if filled)
    yield from enumerate(({"text": text} for text in texts), start=1)


def _parquet_records(path: Path) -> Iterator[tuple[int, Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=256))
            yield from enumerate(chain.from_iterable(batches), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error


def _scan(path: Path, source: SourceConfig) -> dict[str, Any]:
    """Hash a file, check that its records parse (of Parquet, the first one), and count them."""
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    try:
        digest = file_sha256(path)
        if source.kind == "parquet" and next(_parquet_records(path), None):
            from pyarrow.parquet import read_metadata

            count = read_metadata(path).num_rows
        else:
            count = sum(1 for _ in _records(path, source))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a complete gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not count:
        raise UserError(f"{path} holds no records")
    return {"sha256": digest, "records": count}
