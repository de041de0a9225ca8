"""Sources: read the records of one configured source in a deterministic order.

`datasets` converts files to memory-mapped Arrow tables, so memory use does not grow with them. JSON
Lines are stored as text and parsed one record at a time. A record is then exactly what its line
says (types are not merged over the file), and an error names the line.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import random
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipelines import world
from pipelines.data import templates
from pipelines.errors import UserError, did_you_mean
from pipelines.recipe.schema import SourceConfig

Record = dict[str, Any]

# How a message names a record of a kind of source; `record` where nothing is given.
UNITS = {"jsonl": "line", "text": "paragraph"}
_BATCH = 256
_MAX_SKIPPED = 100_000


class Records(Protocol):
    """Deterministic access to the records of one source, after its filters and limit."""

    name: str
    source: SourceConfig
    seed: int

    def __iter__(self) -> Iterator[Record]:
        """One pass, in the order of epoch 0."""
        return (record for _, record in self.iterate())

    def iterate(self, epoch: int = 0) -> Iterator[tuple[int, Record]]:
        """One pass as (index in the source, record); every epoch has a different order."""
        ...

    def locate(self, index: int) -> str:
        """The location of a record for messages: file and line."""
        ...


def open_source(name: str, source: SourceConfig, data_root: str | Path, seed: int) -> Records:
    """Open a source. `name` and `seed` determine its order (files) or its content (world).

    Raises:
        UserError: a file is missing or unreadable, a world stream is unknown, or no record passes
            `filter`, `hash_range` and `limit`.
    """
    if source.kind == "world":
        return WorldRecords(name, source, seed)
    return FileRecords(name, source, data_root, seed)


def resolve_files(name: str, source: SourceConfig, data_root: str | Path) -> list[Path]:
    """The files of a source, sorted; none for a hub data set.

    Raises:
        UserError: the path is empty, the file does not exist, or a glob matches nothing.
    """
    if not source.path:
        raise UserError(f"source '{name}': kind {source.kind} needs a path")
    if source.kind == "hub":
        return []
    full = Path(data_root).expanduser() / Path(source.path).expanduser()
    hint = (
        f"Relative paths start at data_root = {data_root}. To change it, set the environment "
        "variable REMIT_DATA or data_root=FOLDER."
    )
    if full.is_file():
        return [full]
    if full.is_dir():
        raise UserError(f"source '{name}': {full} is a folder. Name its files, as in {full}/*.*")
    if not glob.has_magic(source.path):
        raise UserError(f"source '{name}': file {full} does not exist. {hint}")
    pattern = os.path.join(glob.escape(str(Path(data_root).expanduser())), source.path)
    found = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not found:
        raise UserError(f"source '{name}': no file matches {full}. {hint}")
    return found


def json_record(line: str) -> Record:
    """The record in a line of JSON; raises UserError if there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {error}") from error
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise UserError(f"a record must be a JSON object, but this one is a {kind}")
    return record


def prompt_hash(prompt: str) -> float:
    """Hash a prompt to a number in [0, 1), ignoring case and white space."""
    normal = " ".join(prompt.lower().split())
    digest = hashlib.blake2b(normal.encode("utf-8"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / float(1 << 53)


def keeps_everything(source: SourceConfig) -> bool:
    """Whether neither `filter` nor `hash_range` can exclude a record."""
    return not source.filter and source.hash_range[0] <= 0 and source.hash_range[1] >= 1


def is_kept(record: Record, source: SourceConfig) -> bool:
    """Whether a record passes `filter` and `hash_range`."""
    low, high = source.hash_range
    whole = low <= 0 and high >= 1  # then records need not have a prompt
    return templates.matches(record, source.filter) and (
        whole or low <= prompt_hash(templates.source_text(source.prompt, record, source)) < high
    )


class WorldRecords(Records):
    """Records of a stream of the built-in world; endless unless `limit` or the stream ends it."""

    def __init__(self, name: str, source: SourceConfig, seed: int) -> None:
        if source.stream not in world.STREAMS:
            raise UserError(
                f"source '{name}': the built-in world has no stream '{source.stream}'"
                f"{did_you_mean(source.stream, world.STREAMS)} "
                f"Its streams are {', '.join(world.STREAMS)}."
            )
        self.name, self.source, self.seed = name, source, seed

    def iterate(self, epoch: int = 0) -> Iterator[tuple[int, Record]]:
        records = islice(self._kept(), self.source.limit or None)
        if epoch == 0:
            return records
        shuffled = list(records)
        random.Random(f"{self.seed}:{self.name}:{epoch}").shuffle(shuffled)
        return iter(shuffled)

    def _kept(self) -> Iterator[tuple[int, Record]]:
        skipped = 0
        for index, record in enumerate(world.records(self.source.stream, self.seed)):
            if is_kept(record, self.source):
                skipped = 0
                yield index, record
            elif (skipped := skipped + 1) >= _MAX_SKIPPED:
                raise UserError(
                    f"source '{self.name}': {_MAX_SKIPPED} records in a row of world stream "
                    f"'{self.source.stream}' do not pass filter and hash_range. Relax them."
                )

    def locate(self, index: int) -> str:
        return f"world stream '{self.source.stream}', record {index}"


class FileRecords(Records):
    """Records of local files or of a hub data set; each pass is a seeded permutation."""

    def __init__(self, name: str, source: SourceConfig, data_root: str | Path, seed: int) -> None:
        self.name, self.source, self.seed = name, source, seed
        self.files = resolve_files(name, source, data_root)
        self._table = _load(name, source, self.files)
        self._kept = self._filter()
        if not len(self._kept):
            everything = keeps_everything(source)
            reason = "it has no records" if everything else "no record passes its filters"
            raise UserError(f"source '{name}' ({source.path}): {reason}")

    def iterate(self, epoch: int = 0) -> Iterator[tuple[int, Record]]:
        name = int.from_bytes(hashlib.blake2b(self.name.encode(), digest_size=4).digest(), "big")
        order = np.random.default_rng([self.seed, epoch, name]).permutation(self._kept)
        return self._read(order)

    def locate(self, index: int) -> str:
        for path, rows in zip(self.files, self._rows_per_file, strict=True):
            if index < rows:
                return f"{path}, {UNITS.get(self.source.kind, 'record')} {index + 1}"
            index -= rows
        return f"{self.source.path}, record {index + 1}"

    @cached_property
    def _rows_per_file(self) -> list[int]:
        # Only error messages need these counts, so the files are opened again here.
        return [len(_load(self.name, self.source, [path])) for path in self.files]

    def _read(self, order: np.ndarray) -> Iterator[tuple[int, Record]]:
        if self.source.kind in ("jsonl", "text"):
            # Read single lines from the Arrow column; for short lines this is faster than batches.
            lines = self._table.data.column("text")
            is_json = self.source.kind == "jsonl"
            for index in map(int, order):
                text = lines[index].as_py()
                yield index, self._parse(index, text) if is_json else {"text": text.strip("\n")}
            return
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH].tolist()
            columns = self._table[indices]
            for index, *row in zip(indices, *columns.values(), strict=True):
                yield index, dict(zip(columns, row, strict=True))

    def _parse(self, index: int, line: str) -> Record:
        try:
            return json_record(line)
        except UserError as error:
            raise UserError(f"{self.locate(index)}: {error}") from error

    def _filter(self) -> np.ndarray:
        """Indices of the records that pass the filters, int64, in file order."""
        rows = self._filled_lines() if self.source.kind == "jsonl" else np.arange(len(self._table))
        limit = self.source.limit or len(rows)
        if keeps_everything(self.source):
            return rows[:limit].astype(np.int64)
        passing = (i for i, record in self._read(rows) if self._passes(i, record))
        return np.fromiter(islice(passing, limit), dtype=np.int64)

    def _passes(self, index: int, record: Record) -> bool:
        try:
            return is_kept(record, self.source)
        except UserError as error:
            raise UserError(f"source '{self.name}', {self.locate(index)}: {error}") from error

    def _filled_lines(self) -> np.ndarray:
        import pyarrow.compute as pc

        filled = [
            pc.not_equal(pc.utf8_trim_whitespace(chunk), "").to_numpy(zero_copy_only=False)
            for chunk in self._table.data.column("text").chunks
        ]
        return np.flatnonzero(np.concatenate(filled)) if filled else np.empty(0, np.int64)


def _load(name: str, source: SourceConfig, files: list[Path]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    # Escape the names: the builders expand patterns, and a file may be called a[1].jsonl.
    paths = [glob.escape(str(path.resolve())) for path in files]
    what = ", ".join(map(str, files[:3]))
    try:
        if source.kind == "hub":
            subset = source.name or None
            what = f"hub data set {source.path} (name {subset or 'default'}, split {source.split})"
            return datasets.load_dataset(source.path, subset, split=source.split)
        if source.kind == "parquet":
            return datasets.Dataset.from_parquet(paths)  # type: ignore[arg-type]
        by = "line" if source.kind == "jsonl" else "paragraph"
        return datasets.Dataset.from_text(paths, sample_by=by)  # type: ignore[arg-type]
    except Exception as error:  # of many types, for a file, the network, a name or a split
        cause = error.__cause__ or error
        raise UserError(f"source '{name}': {what} cannot be loaded: {cause}") from error
