"""The score cache: per-token log-probabilities of a model over packed sequences, on disk.

A score takes two bytes per token. The name of a set is a hash of everything that determines its
numbers. It is written in shards, each renamed into place when complete, and is valid only with its
marker. Scoring that was interrupted resumes with the missing shards.

Rounding: fp16 has 11 significant bits, so the error of a log-probability -x is at most x / 2048,
for example 0.004 at -8. ReMiT subtracts a mean, and the slope of 2 sigmoid(c) is at most 1/2. So a
weight changes by at most half of the token's error plus half of its sequence's mean error, which is
at most the largest error in the sequence. With the maps identity and tanh the bound is twice as
large; `standardize` also divides it by the standard deviation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from pipelines.data.packed_set import PackedDataset
from pipelines.errors import DamagedFile, UserError
from pipelines.run_dir.disk import require_space
from pipelines.run_dir.fail_points import fail_point
from pipelines.run_dir.markers import read_marker, write_marker
from pipelines.run_dir.paths import fsync_dir, read_json, remove_parts, write_json

SCORE_VERSION = 1
_MARKER = "complete.json"
_TYPES = {
    "key": dict, "stream": str, "num_sequences": int, "shard_sequences": int, "files": dict,
}  # fmt: skip


@dataclass(frozen=True)
class ScoreKey:
    """Everything that determines a set of scores.

    Attributes:
        data: fingerprint of the packed set (sources, tokenizer, packing, seed, length).
        document_mask: whether attention stays within documents.
        model: content hash of the scoring model.
        num_tokens: size of the base's tokenizer, to which logits are cut.
        attn_implementation: attention implementation.
        dtype: dtype of weights and activations.
    """

    data: str
    document_mask: bool
    model: str
    num_tokens: int
    attn_implementation: str
    dtype: str
    version: int = SCORE_VERSION

    @property
    def fingerprint(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ScoreCache:
    """One set of scores, stored as fp16 in `<scores>/<fingerprint>/sequences-<from>-<to>.npy`.

    Args:
        scores_dir: folder of all sets.
        stream, num_sequences: stream and length of the packed set.
        shard_sequences: sequences per file; for a complete set, the number it was written with.
    """

    def __init__(
        self,
        scores_dir: Path,
        key: ScoreKey,
        stream: str,
        num_sequences: int,
        shard_sequences: int = 1024,
    ) -> None:
        self.folder = scores_dir / key.fingerprint
        self.key = key
        self.stream = stream
        self.num_sequences = num_sequences
        if self.is_complete():
            # `drop_damaged` reports a damaged marker, and removes it with all shards.
            with contextlib.suppress(DamagedFile):
                shard_sequences = self._marker()["shard_sequences"]
        self.shard_sequences = shard_sequences
        self.num_shards = -(-num_sequences // shard_sequences)
        self._shards: list[np.ndarray] = []

    def sequences_of(self, shard: int) -> range:
        """Indices of the sequences in a shard."""
        first = shard * self.shard_sequences
        return range(first, min(first + self.shard_sequences, self.num_sequences))

    def path(self, shard: int) -> Path:
        rows = self.sequences_of(shard)
        return self.folder / f"sequences-{rows.start:09d}-{rows.stop:09d}.npy"

    def is_complete(self) -> bool:
        return (self.folder / _MARKER).is_file()

    def has(self, shard: int) -> bool:
        """Whether a shard exists and matches its checksum; reads the whole file."""
        facts = _facts(self.path(shard))
        beside = self._facts_path(shard)
        if facts is None or not beside.is_file():
            return False
        try:
            return read_json(beside) == facts
        except DamagedFile:
            return False

    def _facts_path(self, shard: int) -> Path:
        """File with size and checksum of a shard, used until the marker lists all shards."""
        return self.path(shard).with_suffix(".json")

    def write(self, shard: int, logprobs: np.ndarray) -> None:
        """Write a shard atomically; `logprobs` is [sequences, context]."""
        self.folder.mkdir(parents=True, exist_ok=True)
        require_space(self.folder, 2 * logprobs.size, f"score shard {shard}")
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".shard-")
        os.fchmod(handle, 0o644)
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, logprobs.astype(np.float16))
            stream.flush()
            fail_point("before a score shard is renamed")
            os.fsync(stream.fileno())
        facts = _facts(Path(temporary))
        assert facts is not None
        # Write the facts before the shard appears, so that a crash loses no finished shard.
        write_json(self._facts_path(shard), facts)
        os.replace(temporary, self.path(shard))
        fsync_dir(self.folder)

    def finish(self) -> None:
        """Write the marker, and remove shard files that it does not list.

        Every shard must exist. Other shard files come from an interrupted scoring with a different
        shard size.
        """
        files = {
            self.path(shard).name: read_json(self._facts_path(shard))
            for shard in range(self.num_shards)
        }
        fail_point("before the marker of scores")
        write_marker(
            self.folder / _MARKER,
            {
                "key": asdict(self.key),
                "stream": self.stream,
                "num_sequences": self.num_sequences,
                "shard_sequences": self.shard_sequences,
                "files": files,
            },
        )
        for path in self.folder.glob("sequences-*"):
            if path.name not in files:
                path.unlink()
        for leftover in self.folder.glob(".shard-*"):
            leftover.unlink()
        remove_parts(self.folder)

    def _marker(self) -> dict[str, Any]:
        """Read the marker; raises `DamagedFile` if it is not what was written."""
        path = self.folder / _MARKER
        marker = read_marker(path, _TYPES)
        size = marker["shard_sequences"]
        names = [
            f"sequences-{first:09d}-{min(first + size, self.num_sequences):09d}.npy"
            for first in range(0, self.num_sequences, max(size, 1))
        ]
        if size < 1 or marker["key"] != asdict(self.key) or sorted(marker["files"]) != names:
            raise DamagedFile(f"{path} is damaged: it describes different scores.")
        return marker

    def damaged(self) -> list[str]:
        """Names of shards of a complete set that differ from the marker, or the damaged marker."""
        if not self.is_complete():
            return []
        try:
            files: dict[str, Any] = self._marker()["files"]
        except DamagedFile:
            return [_MARKER]
        return [name for name, facts in files.items() if _facts(self.folder / name) != facts]

    def drop_damaged(self) -> list[str]:
        """Remove damaged shards and the marker, and return the names of the damaged files.

        If the marker is damaged, no shard can be checked, so all are removed.
        """
        bad = self.damaged()
        if bad == [_MARKER]:
            for path in self.folder.glob("sequences-*"):
                path.unlink(missing_ok=True)
            (self.folder / _MARKER).unlink(missing_ok=True)
        elif bad:
            for name, facts in self._marker()["files"].items():
                if name in bad:
                    (self.folder / name).unlink(missing_ok=True)
                else:
                    write_json((self.folder / name).with_suffix(".json"), facts)
            # Remove the marker last: until then it still reports the missing shards.
            (self.folder / _MARKER).unlink(missing_ok=True)
        return bad

    def __getitem__(self, index: int) -> np.ndarray:
        """Log-probabilities of a sequence's targets, fp32 [context]; 0 without a target."""
        if not self._shards:
            self._shards = [
                np.load(self.path(shard), mmap_mode="r") for shard in range(self.num_shards)
            ]
        shard, row = divmod(index, self.shard_sequences)
        found: np.ndarray = self._shards[shard][row].astype(np.float32)
        return found


def _facts(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def longer_scores(
    scores_dir: Path, key: ScoreKey, stream: str, num_sequences: int
) -> ScoreCache | None:
    """Find a complete, longer set of the same model that begins with the sequences of `key`.

    MiniPLM scores a pool that is twice as long as the training set and begins with it. Returns None
    if there is no such set.
    """
    for marker in sorted(scores_dir.glob(f"*/{_MARKER}")):
        try:
            found = read_marker(marker, _TYPES)
        except DamagedFile:
            # Of another set, whose own stage names it.
            continue
        same = found["key"] | {"data": key.data} == asdict(key) and found["stream"] == stream
        if same and found["num_sequences"] > num_sequences:
            longer = ScoreCache(
                scores_dir, replace(key, data=found["key"]["data"]), stream, found["num_sequences"]
            )
            if not longer.damaged():
                return longer
    return None


def open_scores(
    scores_dir: Path, key: ScoreKey, stream: str, num_sequences: int, whose: str
) -> ScoreCache:
    """The complete set of scores of `key`, or a longer one that begins with it.

    Raises:
        UserError: no such set exists, or a shard is damaged; the message says how the nearest
            existing set differs.
    """
    cache = ScoreCache(scores_dir, key, stream, num_sequences)
    damaged = cache.drop_damaged()
    if damaged:
        raise UserError(
            f"scores of {whose}: {', '.join(damaged)} in {cache.folder} did not match the checksum "
            "and was removed. Run the command again to score only what was removed."
        )
    if cache.is_complete():
        return cache
    if longer := longer_scores(scores_dir, key, stream, num_sequences):
        return longer
    wanted = asdict(key)
    nearest: list[str] = []
    for marker in sorted(scores_dir.glob(f"*/{_MARKER}")):
        try:
            found = read_marker(marker, _TYPES)["key"]
        except DamagedFile:
            # Of another set, whose own stage names it.
            continue
        differing = [
            f"{name}: {found.get(name)} instead of {value}"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        nearest = min(nearest or differing, differing, key=len)
    hint = f" The nearest existing set differs ({'; '.join(nearest)})." if nearest else ""
    raise UserError(
        f"{scores_dir} has no scores of {whose} for these sequences.{hint} Run remit score in the "
        "same run directory and with the same config."
    )


class ScoredSequences(Dataset):  # type: ignore[type-arg]
    """Packed sequences with the scores of a reference: items and batches carry `ref_logprobs`."""

    def __init__(self, packed: PackedDataset, scores: ScoreCache) -> None:
        self.packed = packed
        self.scores = scores

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {**self.packed[index], "ref_logprobs": self.scores[index]}

    def collate(self, batch: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        """Stack items into a batch, with `ref_logprobs` fp32 [batch, seq]."""
        import torch

        scores = torch.from_numpy(np.stack([item["ref_logprobs"] for item in batch]))
        return {**self.packed.collate(batch), "ref_logprobs": scores}


class ChosenSequences(Dataset):  # type: ignore[type-arg]
    """A selection of the packed sequences, in the order of `chosen`."""

    def __init__(self, packed: PackedDataset, chosen: np.ndarray) -> None:
        self.packed = packed
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.packed[int(self.chosen[index])]
