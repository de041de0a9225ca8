"""A packed set: sequences of equal length from one token stream, memory-mapped and batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pipelines.errors import DamagedFile
from pipelines.run_dir.markers import read_marker

MARKER = "complete.json"
START_TYPE = np.dtype(np.uint64)
SOURCE_TYPE = np.dtype(np.uint16)
_TYPES = {
    "stream": str, "sequence_length": int, "num_sequences": int, "dtype": str, "sources": dict,
    "files": dict,
}  # fmt: skip


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
    """A packed set on disk; an item is one sequence.

    Attributes:
        facts: content of `complete.json`: counts of tokens and documents, epochs and share of each
            source, sizes and SHA-256 of the files.
        fingerprint: name of the set.
        stream: fingerprint shared by longer and shorter sets that begin with the same sequences.
        with_documents: whether batches carry `documents`.
    """

    with_documents = False

    def __init__(self, folder: str | Path, *, document_mask: bool) -> None:
        self.folder = Path(folder)
        self.document_mask = document_mask
        self.facts: dict[str, Any] = read_facts(self.folder)
        self.fingerprint = self.folder.name
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
        return {
            name: {"share": counts["share"], "epochs": counts["epochs"]}
            for name, counts in self.facts["sources"].items()
        }

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """`input_ids` and `position_ids` (and `documents`), int64 [sequence_length] each."""
        item = {
            "input_ids": self._tokens[index].astype(np.int64),
            "position_ids": self.positions(index),
        }
        if self.with_documents:
            item["documents"] = self.documents(index)
        return item

    def documents(self, index: int) -> np.ndarray:
        """Index, within the sequence, of the document of each position's target, int64 [seq]."""
        number = np.zeros(self.sequence_length + 1, dtype=np.int64)
        inside = self._starts_of(index)
        number[inside[inside > 0]] = 1
        return number.cumsum()[1:]

    def num_targets(self, index: int) -> int:
        """Number of targets: all positions but the last; with the mask, none before a document."""
        if not self.document_mask:
            return self.sequence_length - 1
        inside = self._starts_of(index)
        return self.sequence_length - 1 - int((inside > 0).sum())

    def positions(self, index: int) -> np.ndarray:
        """Positions of a sequence, int64 [sequence_length].

        They restart at its first token and, under the document mask, at each document.
        """
        positions = np.arange(self.sequence_length)
        if self.document_mask:
            origin = np.zeros(self.sequence_length, dtype=np.int64)
            inside = self._starts_of(index)
            origin[inside] = inside
            positions -= np.maximum.accumulate(origin)
        return positions

    def source_at_start(self, index: int) -> str:
        """Name of the source of a sequence's first token."""
        offset = np.array(index * self.sequence_length, dtype=START_TYPE)
        first = int(np.searchsorted(self._starts, offset, side="right")) - 1
        return self.source_names[int(self._sources[first])]

    def spans(self, num_sequences: int) -> list[tuple[int, int, str]]:
        """Documents in the first sequences, as (start, end, source) with token positions.

        The last document may be cut where the sequences end.
        """
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
        """Stack items into int64 tensors [batch, seq].

        `shift_labels[t]` is the token after t. It is -100 at the last position and, under the
        document mask, where a document begins at t + 1. `labels` is a copy with which Trainer
        counts targets. `position_ids` is present only with the document mask, `documents` only if
        `with_documents` is set.
        """
        input_ids = torch.from_numpy(np.stack([item["input_ids"] for item in batch]))
        shift_labels = torch.full_like(input_ids, -100)
        shift_labels[:, :-1] = input_ids[:, 1:]
        tensors = {"input_ids": input_ids, "shift_labels": shift_labels}
        if self.document_mask:
            positions = torch.from_numpy(np.stack([item["position_ids"] for item in batch]))
            shift_labels[:, :-1][positions[:, 1:] == 0] = -100
            tensors["position_ids"] = positions
        if "documents" in batch[0]:
            tensors["documents"] = torch.from_numpy(np.stack([i["documents"] for i in batch]))
        tensors["labels"] = shift_labels.clone()
        return tensors
