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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from pipelines.data import templates
from pipelines.data.sources import (
    Record,
    is_kept,
    keeps_everything,
    open_source,
    resolve_files,
)
from pipelines.errors import DamagedFile, UserError, did_you_mean
from pipelines.recipe.schema import SourceConfig
from pipelines.recipe.schema.training import Records as RecordKind
from pipelines.run_dir.markers import read_marker, write_marker

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class SourceFacts:
    """Facts about a source.

    Attributes:
        files: absolute paths in reading order; empty for world and hub.
        bytes: size of the files on disk.
        sha256: hash of their content; for world and hub, of the names that identify the data.
        records: lines or rows before any filter; 0 if not known without reading (world, hub).
        kept: records that pass the filters and `limit`; 0 if not known: for documents, a hub, and a
            world stream without limit.
    """

    files: list[str]
    bytes: int
    sha256: str
    records: int
    kept: int = 0


def inspect_source(
    key: str,
    source: SourceConfig,
    data_root: str | Path,
    use: RecordKind,
    cache_path: str | Path | None = None,
    *,
    needs: str = "",
) -> SourceFacts:
    """Check that a stage can use a source.

    Args:
        key: key of the source in the configuration, for messages.
        source: the configured source.
        data_root: folder that relative paths start from.
        use: kind of record, which decides the templates that must fit.
        cache_path: JSON file that caches facts about files already read.
        needs: an additional field that every record must have; empty for none.

    Raises:
        UserError: a file is missing, empty or broken (with its line), a world stream is unknown, a
            regular expression is invalid, a hub data set cannot be loaded, or a record lacks a
            field or a gold answer.
    """
    try:
        _check_expressions(source, use)
        if source.kind == "hub":
            return _inspect_hub(key, source, use, needs)
        if source.kind == "world":
            return _inspect_world(source, use, needs)
        return _inspect_files(key, source, data_root, use, cache_path, needs)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _named(name: str) -> SourceFacts:
    return SourceFacts([], 0, hashlib.sha256(name.encode()).hexdigest(), 0)


def _inspect_hub(key: str, source: SourceConfig, use: RecordKind, needs: str) -> SourceFacts:
    # This downloads the data to the hub's cache on disk, where the stages find it.
    found = open_source(key.rpartition(".")[2], source, "", 0)
    for number, record in enumerate(found, start=1):
        _check_record(
            record, source, use, needs, f"{source.path}, a record of split {source.split}"
        )
        if use == "documents" or number == source.limit:
            break
    return _named(f"hub:{source.path}:{source.name}:{source.split}")


def _inspect_world(source: SourceConfig, use: RecordKind, needs: str) -> SourceFacts:
    from pipelines import world

    if source.stream not in world.STREAMS:
        raise UserError(
            f"the built-in world has no stream '{source.stream}'"
            f"{did_you_mean(source.stream, world.STREAMS)} "
            f"Its streams are {', '.join(world.STREAMS)}."
        )
    first = next(iter(world.records(source.stream, 0)))
    _check_record(first, source, use, needs, f"world stream '{source.stream}'")
    found = _named(f"world:{world.WORLD_VERSION}:{source.stream}")
    return replace(found, kept=source.limit)


def _inspect_files(
    key: str,
    source: SourceConfig,
    data_root: str | Path,
    use: RecordKind,
    cache_path: str | Path | None,
    needs: str,
) -> SourceFacts:
    files = resolve_files(key.rpartition(".")[2], source, data_root)
    cache = _Cache(cache_path)
    digest = hashlib.sha256()
    size = records = 0
    for path in files:
        entry = cache.get(path, source.kind) or cache.put(path, source.kind, _scan(path, source))
        digest.update(bytes.fromhex(entry["sha256"]))
        size += entry["size"]
        records += entry["records"]
    checked = _checked_key(source, f"{use} {needs}", digest.hexdigest())
    kept = cache.checked(checked)
    if kept is None:
        kept = _check_records(files, source, use, needs)
        cache.set_checked(checked, kept)
    cache.save()
    if use == "documents":
        kept = 0
    return SourceFacts([str(path) for path in files], size, digest.hexdigest(), records, kept)


def _check_records(files: list[Path], source: SourceConfig, use: RecordKind, needs: str) -> int:
    """Check all records that pass the filters (of documents, only the first) and count them."""
    first: tuple[Record, str] | None = None
    passed = 0
    for path in files:
        for number, record in _records(path, source):
            where = f"{path}, {_unit(source)} {number}"
            first = first or (record, where)
            try:
                if not keeps_everything(source) and not is_kept(record, source):
                    continue
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            _check_record(record, source, use, needs, where)
            passed += 1
            # A pre-training corpus is too large to render twice, and its empty documents are valid.
            if use == "documents" or passed == source.limit:
                return passed
    if passed:
        return passed
    assert first is not None, "_scan refuses files without a record"
    hint = f" The first record is {str(first[0])[:300]}" if source.filter else ""
    raise UserError(f"no record passes filter = {dict(source.filter)} and hash_range.{hint}")


def _check_expressions(source: SourceConfig, use: RecordKind) -> None:
    templates.pattern(source.strip, "strip")
    compiled = templates.pattern(source.answer_pattern, "answer_pattern")
    if source.answer_pattern and not compiled.groups:
        raise UserError(
            f"answer_pattern {source.answer_pattern!r} has no group. Put the part that matches "
            "the answer in ( )."
        )
    for name in _parts(source, use):
        templates.compiled(_template(source, name))


def _parts(source: SourceConfig, use: RecordKind) -> list[str]:
    if use == "documents":
        return ["text"]
    if use == "pairs" and not source.near_miss:
        return ["prompt", "chosen", "rejected"]
    return ["prompt", "answer"] if use == "problems" else ["prompt", "response"]


def _template(source: SourceConfig, part: str) -> str:
    return {
        "text": source.text,
        "prompt": source.prompt,
        "response": source.response,
        "chosen": source.chosen,
        "rejected": source.rejected,
        "answer": source.answer,
    }[part]


def _check_record(
    record: Record, source: SourceConfig, use: RecordKind, needs: str, where: str
) -> None:
    try:
        if needs and needs not in record:
            raise UserError(f"the record has no field '{needs}'; it has {', '.join(record)}")
        for part in _parts(source, use):
            if part == "answer":
                text = templates.gold_answer(record, source)
            else:
                text = templates.source_text(_template(source, part), record, source)
            # Training skips empty documents, but an empty turn is an error.
            if not text.strip() and part != "text":
                named = "gold answer" if part == "answer" else part
                raise UserError(f"the {named} is empty")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _unit(source: SourceConfig) -> str:
    return {"jsonl": "line", "text": "paragraph"}.get(source.kind, "record")


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
        zipped = stream.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if zipped else open(path, "rb")  # type: ignore[return-value]


def _json_records(path: Path) -> Iterator[tuple[int, Record]]:
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not valid JSON: {error}") from error
            if not isinstance(record, dict):
                raise UserError(
                    f"{path}, line {number}: a record must be a JSON object, but this one is a "
                    f"{type(record).__name__}"
                )
            yield number, record


def _paragraphs(path: Path) -> Iterator[tuple[int, Record]]:
    number, lines = 0, []
    with _open(path) as stream:
        for line_number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {line_number}: not UTF-8: {error}") from error
            if line.rstrip("\r\n"):
                lines.append(line)
            elif lines:
                number += 1
                yield number, {"text": "".join(lines).rstrip("\r\n")}
                lines = []
    if lines:
        yield number + 1, {"text": "".join(lines).rstrip("\r\n")}


def _parquet_records(path: Path) -> Iterator[tuple[int, Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error


def _scan(path: Path, source: SourceConfig) -> dict[str, Any]:
    """Read a whole file; check that it has records and that they parse; return hash and count."""
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    try:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        count = _count_parquet(path) if source.kind == "parquet" else _count(path, source)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a complete gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not count:
        raise UserError(f"{path} holds no records")
    return {"sha256": digest, "records": count}


def _count(path: Path, source: SourceConfig) -> int:
    return sum(1 for _ in _records(path, source))


def _count_parquet(path: Path) -> int:
    for _ in _parquet_records(path):
        break
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(path).num_rows)


def _checked_key(source: SourceConfig, use: str, content: str) -> str:
    settings = json.dumps(asdict(source), sort_keys=True)
    return "checked:" + hashlib.sha256(f"{use} {settings} {content}".encode()).hexdigest()


class _Cache:
    """Cache of earlier scans, by path, kind, size and modification time of a file."""

    def __init__(self, path: str | Path | None) -> None:
        self._path = Path(path) if path else None
        self._entries: dict[str, dict[str, Any]] = {}
        self._changed = False
        if self._path and self._path.is_file():
            # If the cache is damaged, scan again.
            with contextlib.suppress(DamagedFile):
                self._entries = read_marker(self._path, {})

    def get(self, path: Path, kind: str) -> dict[str, Any] | None:
        entry = self._entries.get(f"{kind}:{path.resolve()}")
        stat = path.stat()
        current = entry and (entry["size"], entry["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
        return entry if current else None

    def put(self, path: Path, kind: str, found: dict[str, Any]) -> dict[str, Any]:
        stat = path.stat()
        entry = {**found, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        self._entries[f"{kind}:{path.resolve()}"] = entry
        self._changed = True
        return entry

    def checked(self, key: str) -> int | None:
        """Records that a check of this key found; None where there was none."""
        kept: int | None = self._entries.get(key, {}).get("kept")
        return kept

    def set_checked(self, key: str, kept: int) -> None:
        self._entries[key] = {"kept": kept}
        self._changed = True

    def save(self) -> None:
        if self._path is not None and self._changed:
            write_marker(self._path, self._entries)
