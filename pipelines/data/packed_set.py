"""A packed set: sequences of equal length from one token stream, memory-mapped and batched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pipelines.errors import DamagedFile
from pipelines.models.checkpoint import file_sha256
from pipelines.run_dir.markers import read_marker

MARKER = "complete.json"
START_TYPE = np.dtype(np.uint64)
SOURCE_TYPE = np.dtype(np.uint16)
_TYPES = {
    "stream": str, "sequence_length": int, "num_sequences": int, "dtype": str, "sources": dict,
    "files": dict,
}  # fmt: skip


def short_hash(values: Any) -> str:
    """A hash of what determines a folder's content, as its name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def file_facts(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as markers list them."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def damaged_files(folder: Path, files: Mapping[str, Any]) -> list[str]:
    """Names of the files that are missing or do not match their facts in a marker."""
    paths = {folder / name: facts for name, facts in files.items()}
    return [p.name for p, facts in paths.items() if not p.is_file() or file_facts(p) != facts]


@contextmanager
def placed(folder: Path, prefix: str, is_complete: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder`, unless another process made that complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=prefix, ignore_cleanup_errors=True
    ) as temporary:
        yield Path(temporary)
        if folder.exists() and not is_complete(folder):
            shutil.rmtree(folder)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not is_complete(folder):
                raise


def read_facts(folder: Path) -> dict[str, Any]:
    """Read the marker of a packed set.

    Raises:
        DamagedFile: the marker is not what was written.
    """
    path = folder / MARKER
    facts = read_marker(path, _TYPES)
    try:
        for counts in facts["sources"].values():
            float(counts["share"]), int(counts["epochs"])
        files = {name: (int(f["bytes"]), str(f["sha256"])) for name, f in facts["files"].items()}
        size = facts["num_sequences"] * facts["sequence_length"] * np.dtype(facts["dtype"]).itemsize
        fits = files["tokens.bin"][0] == size and {"starts.bin", "sources.bin"} <= files.keys()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{path} is damaged: {error}.") from error
    if not fits or facts["dtype"] not in ("uint16", "uint32"):
        raise DamagedFile(f"{path} is damaged: its numbers are inconsistent.")
    return facts


class PackedDataset(Dataset):  # type: ignore[type-arg]
    """A packed set on disk; an item is one sequence."""

    with_documents = False  # whether batches carry `documents`

    def __init__(self, folder: str | Path, *, document_mask: bool) -> None:
        self.folder = Path(folder)
        self.document_mask = document_mask
        self.facts: dict[str, Any] = read_facts(self.folder)
        self.fingerprint = self.folder.name
        # Shared by longer and shorter sets that begin with the same sequences.
        self.stream: str = self.facts["stream"]
        self.sequence_length: int = self.facts["sequence_length"]
        self.source_names: list[str] = list(self.facts["sources"])
        shape = (self.facts["num_sequences"], self.sequence_length)
        kind = np.dtype(self.facts["dtype"])
        self._tokens = np.memmap(self.folder / "tokens.bin", kind, "r", shape=shape)
        self._starts = np.memmap(self.folder / "starts.bin", START_TYPE, "r")
        self._sources = np.memmap(self.folder / "sources.bin", SOURCE_TYPE, "r")

    @property
    def mixture(self) -> dict[str, dict[str, float]]:
        """For each source, its share of the tokens and the number of passes started over it."""
        sources = self.facts["sources"].items()
        return {name: {key: counts[key] for key in ("share", "epochs")} for name, counts in sources}

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`input_ids` and `position_ids` (and `documents`), int64 [sequence_length] each."""
        ids = self._tokens[index].astype(np.int64)
        item = {"input_ids": ids, "position_ids": self.positions(index)}
        return item | ({"documents": self.documents(index)} if self.with_documents else {})

    def documents(self, index: int) -> np.ndarray:
        """Index, within the sequence, of the document of each position's target, int64 [seq]."""
        begins = np.zeros(self.sequence_length + 1, dtype=np.int64)
        begins[self._starts_of(index)] = 1
        return begins[1:].cumsum()

    def num_targets(self, index: int) -> int:
        """Number of targets: all positions but the last; with the mask, none before a document."""
        begun = np.count_nonzero(self._starts_of(index)) if self.document_mask else 0
        return self.sequence_length - 1 - int(begun)

    def positions(self, index: int) -> np.ndarray:
        """Positions in a sequence (under the document mask, in a document), int64 [seq]."""
        positions = np.arange(self.sequence_length)
        if self.document_mask:
            origin = np.zeros_like(positions)
            inside = self._starts_of(index)
            origin[inside] = inside
            positions -= np.maximum.accumulate(origin)
        return positions

    def spans(self, num_sequences: int) -> list[tuple[int, int, str]]:
        """Documents in the first sequences as (start, end, source); the last one may be cut."""
        end = num_sequences * self.sequence_length
        count = int(np.searchsorted(self._starts, np.array(end, dtype=START_TYPE)))
        starts = self._starts[:count].astype(np.int64).tolist()
        names = [self.source_names[int(number)] for number in self._sources[:count]]
        return list(zip(starts, [*starts[1:], end], names, strict=True))

    def _starts_of(self, index: int) -> np.ndarray:
        offset = index * self.sequence_length
        # With bounds of the array's dtype, numpy does not convert the whole array.
        bounds = np.array([offset, offset + self.sequence_length], dtype=START_TYPE)
        low, high = np.searchsorted(self._starts, bounds)
        return self._starts[low:high].astype(np.int64) - offset

    def collate(self, batch: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Stack the values of items into tensors [batch, seq], and add int64 labels.

        `shift_labels[t]` is the token after t. It is -100 at the last position and, under the
        document mask, where a document begins at t + 1. `labels` is a copy with which Trainer
        counts targets. `position_ids` is present only with the document mask.
        """
        stacked = {k: torch.from_numpy(np.stack([item[k] for item in batch])) for k in batch[0]}
        input_ids, positions = stacked["input_ids"], stacked.pop("position_ids")
        shift_labels = torch.full_like(input_ids, -100)
        shift_labels[:, :-1] = input_ids[:, 1:]
        if self.document_mask:
            shift_labels[:, :-1][positions[:, 1:] == 0] = -100
            stacked["position_ids"] = positions
        return {**stacked, "shift_labels": shift_labels, "labels": shift_labels.clone()}
