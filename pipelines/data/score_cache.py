"""The score cache: per-token log-probabilities of a model over packed sequences, on disk.

The name of a set is a hash of everything that determines its numbers. It is written in shards, each
renamed into place when complete, and is valid only with its marker. Scoring that was interrupted
resumes with the missing shards.

Rounding: fp16 has 11 significant bits, so the error of a log-probability -x is at most x / 2048,
for example 0.004 at -8. ReMiT subtracts a mean, and the slope of 2 sigmoid(c) is at most 1/2. So a
weight changes by at most the largest error in its sequence. With the maps identity and tanh the
bound is twice as large; `standardize` also divides it by the standard deviation.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from pipelines.data.packed_set import PackedDataset, damaged_files, file_facts, short_hash
from pipelines.errors import DamagedFile, UserError
from pipelines.run_dir.disk import require_space
from pipelines.run_dir.fail_points import fail_point
from pipelines.run_dir.markers import read_marker, write_marker
from pipelines.run_dir.paths import fsync_dir, read_json, remove_parts, write_json

_MARKER = "complete.json"
_TYPES = {
    "key": dict, "stream": str, "num_sequences": int, "shard_sequences": int, "files": dict,
}  # fmt: skip


@dataclass(frozen=True)
class ScoreKey:
    """Everything that determines a set of scores."""

    data: str  # fingerprint of the packed set
    document_mask: bool
    model: str  # content hash of the scoring model
    num_tokens: int  # size of the base's tokenizer, to which logits are cut
    attn_implementation: str
    dtype: str  # of weights and activations
    version: int = 1

    @property
    def fingerprint(self) -> str:
        return short_hash(asdict(self))


class ScoreCache:
    """One set of scores, stored as fp16 in `<scores>/<fingerprint>/sequences-<from>-<to>.npy`.

    `stream` and `num_sequences` are those of the packed set. A complete set keeps the
    `shard_sequences` (sequences per file) that it was written with.
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
        self.marker = self.folder / _MARKER
        self.key, self.stream, self.num_sequences = key, stream, num_sequences
        if self.is_complete():
            # `drop_damaged` reports a damaged marker, and removes it with all shards.
            with contextlib.suppress(DamagedFile):
                shard_sequences = self._read_marker()["shard_sequences"]
        self.shard_sequences = shard_sequences
        self.num_shards = -(-num_sequences // shard_sequences)
        self._shards: list[np.ndarray] = []

    def sequences_of(self, shard: int) -> range:
        """Indices of the sequences in a shard."""
        first = shard * self.shard_sequences
        return range(first, min(first + self.shard_sequences, self.num_sequences))

    def path(self, shard: int) -> Path:
        rows = self.sequences_of(shard)
        return self.folder / _shard_name(rows.start, rows.stop)

    def is_complete(self) -> bool:
        return self.marker.is_file()

    def has(self, shard: int) -> bool:
        """Whether a shard exists and matches its checksum; reads the whole file."""
        path = self.path(shard)
        try:
            return read_json(path.with_suffix(".json")) == file_facts(path)
        except (DamagedFile, FileNotFoundError):
            return False

    def write(self, shard: int, logprobs: np.ndarray) -> None:
        """Write a shard atomically; `logprobs` is [sequences, context].

        A JSON file next to it has its size and checksum, until the marker lists all shards.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        require_space(self.folder, 2 * logprobs.size, f"score shard {shard}")
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".shard-")
        os.fchmod(handle, 0o644)
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, logprobs.astype(np.float16))
            stream.flush()
            fail_point("before a score shard is renamed")
            os.fsync(stream.fileno())
        # Write the facts before the shard appears, so that a crash loses no finished shard.
        write_json(self.path(shard).with_suffix(".json"), file_facts(Path(temporary)))
        os.replace(temporary, self.path(shard))
        fsync_dir(self.folder)

    def finish(self) -> None:
        """Write the marker, for which every shard must exist, and remove all other files.

        These come from an interrupted scoring, which may have had a different shard size.
        """
        paths = [self.path(shard) for shard in range(self.num_shards)]
        files = {path.name: read_json(path.with_suffix(".json")) for path in paths}
        fail_point("before the marker of scores")
        write_marker(self.marker, {
            "key": asdict(self.key),
            "stream": self.stream,
            "num_sequences": self.num_sequences,
            "shard_sequences": self.shard_sequences,
            "files": files,
        })  # fmt: skip
        for path in [*self.folder.glob("sequences-*"), *self.folder.glob(".shard-*")]:
            if path.name not in files:
                path.unlink()
        remove_parts(self.folder)

    def _read_marker(self) -> dict[str, Any]:
        """Read the marker; raises `DamagedFile` if it is not what was written."""
        marker = read_marker(self.marker, _TYPES)
        size = marker["shard_sequences"]
        names = [
            _shard_name(first, min(first + size, self.num_sequences))
            for first in range(0, self.num_sequences, max(size, 1))
        ]
        if size < 1 or marker["key"] != asdict(self.key) or sorted(marker["files"]) != names:
            raise DamagedFile(f"{self.marker} is damaged: it describes different scores.")
        return marker

    def damaged(self) -> list[str]:
        """Names of shards of a complete set that differ from the marker, or the damaged marker."""
        if not self.is_complete():
            return []
        try:
            return damaged_files(self.folder, self._read_marker()["files"])
        except DamagedFile:
            return [_MARKER]

    def drop_damaged(self) -> list[str]:
        """Remove damaged shards (all, if the marker is damaged) and the marker; name them."""
        bad = self.damaged()
        if bad == [_MARKER]:
            for path in self.folder.glob("sequences-*"):
                path.unlink(missing_ok=True)  # all ranks may do this at once
        elif bad:
            for name, facts in self._read_marker()["files"].items():
                if name in bad:
                    (self.folder / name).unlink(missing_ok=True)
                else:
                    write_json((self.folder / name).with_suffix(".json"), facts)
        if bad:
            # Remove the marker last: until then it still reports the missing shards.
            self.marker.unlink(missing_ok=True)
        return bad

    def __getitem__(self, index: int) -> np.ndarray:
        """Log-probabilities of a sequence's targets, fp32 [context]; 0 without a target."""
        if not self._shards:
            self._shards = [np.load(self.path(i), mmap_mode="r") for i in range(self.num_shards)]
        shard, row = divmod(index, self.shard_sequences)
        found: np.ndarray = self._shards[shard][row].astype(np.float32)
        return found


def _shard_name(first: int, stop: int) -> str:
    return f"sequences-{first:09d}-{stop:09d}.npy"


def _readable_markers(scores_dir: Path) -> Iterator[dict[str, Any]]:
    """The markers of all sets; a damaged one is named by the stage that reads its set."""
    for path in sorted(scores_dir.glob(f"*/{_MARKER}")):
        with contextlib.suppress(DamagedFile):
            yield read_marker(path, _TYPES)


def longer_scores(
    scores_dir: Path, key: ScoreKey, stream: str, num_sequences: int
) -> ScoreCache | None:
    """Find a complete, longer set of the same model that begins with the sequences of `key`.

    MiniPLM scores a pool that is twice as long as the training set and begins with it.
    """
    for found in _readable_markers(scores_dir):
        same = found["key"] | {"data": key.data} == asdict(key) and found["stream"] == stream
        if same and found["num_sequences"] > num_sequences:
            whole = replace(key, data=found["key"]["data"])
            longer = ScoreCache(scores_dir, whole, stream, found["num_sequences"])
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
    differing = [
        [
            f"{name}: {found['key'].get(name)} instead of {value}"
            for name, value in asdict(key).items()
            if found["key"].get(name) != value
        ]
        for found in _readable_markers(scores_dir)
    ]
    nearest = min(differing, key=len, default=[])
    hint = f" The nearest existing set differs ({'; '.join(nearest)})." if nearest else ""
    raise UserError(
        f"{scores_dir} has no scores of {whose} for these sequences.{hint} Run remit score in the "
        "same run directory and with the same config."
    )


class ScoredSequences(Dataset):  # type: ignore[type-arg]
    """Packed sequences with the scores of a reference: items and batches carry `ref_logprobs`."""

    def __init__(self, packed: PackedDataset, scores: ScoreCache) -> None:
        self.packed, self.scores, self.collate = packed, scores, packed.collate

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {**self.packed[index], "ref_logprobs": self.scores[index]}
