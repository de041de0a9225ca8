"""Speed of packing against the bare tokenizer, in interleaved pairs; memory as the corpus grows.

    python tests/bench_packing.py [pairs]
    python tests/bench_packing.py memory [megabytes ...]

Both sides see the same documents of the built-in world: packing reads them from a JSON Lines file,
`encode_batch` has them in memory. One call takes them all, its fastest use, and frees its result
in its time, as packing does.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from pipelines.data.new_tokenizer import build_tokenizer
from pipelines.data.packing import pack
from pipelines.data.records import documents
from pipelines.evals.intervals import mean_interval
from pipelines.recipe.schema import SourceConfig, TokenizerConfig

DOCUMENTS = 60_000
WORLD = {"world": SourceConfig(kind="world", stream="mid_train")}
CHARACTERS = TokenizerConfig(kind="world")
BPE = TokenizerConfig(kind="bpe", vocab_size=1024, train_characters=1_000_000)


def world_texts(count: int) -> list[str]:
    return [document.text for document in islice(documents(WORLD, ".", 0), count)]


def write_lines(path: Path, texts: list[str], repeats: int = 1) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    with open(path, "w", encoding="utf-8") as stream:
        for _ in range(repeats):
            stream.write(lines)


def pack_file(path: Path, tokenizer: PreTrainedTokenizerFast, num_tokens: int) -> float:
    """Seconds of packing a file of JSON Lines."""
    sources = {"text": SourceConfig(kind="jsonl", path=str(path), text="{{ text }}")}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in a stage
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        start = time.perf_counter()
        pack(
            sources, tokenizer, sequence_length=128, document_mask=True, num_tokens=num_tokens,
            seed=0, data_root=".", out_dir=folder, data_sha256={"text": ""},
        )  # fmt: skip
        return time.perf_counter() - start


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> float:
    """Seconds of the bare tokenizer, on all cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    start = time.perf_counter()
    tokenizer.backend_tokenizer.encode_batch(texts)
    return time.perf_counter() - start


def speed_ratio(title: str, config: TokenizerConfig, pairs: int) -> None:
    texts = world_texts(DOCUMENTS)
    tokenizer = build_tokenizer(config, WORLD, ".", 0)
    encodings = tokenizer.backend_tokenizer.encode_batch(texts)
    num_tokens = sum(len(encoding.ids) + 1 for encoding in encodings) // 128 * 128
    del encodings
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "world.jsonl")
        write_lines(path, texts)
        pack_file(path, tokenizer, num_tokens)
        seen = [
            (encode(texts, tokenizer), pack_file(path, tokenizer, num_tokens)) for _ in range(pairs)
        ]
    mean, half = mean_interval([math.log(bare / ours) for bare, ours in seen])
    low, high = (math.exp(mean + sign * (half or 0)) for sign in (-1, 1))
    rate = num_tokens / min(ours for _, ours in seen)
    ratio = f"{math.exp(mean):.2f}, {low:.2f} to {high:.2f}"
    print(f"{title}: packing / encode_batch (aim 0.80) {ratio}; {rate:,.0f} tokens/s")


def pack_megabytes(size: int) -> None:
    """In a process of its own: pack a file of that size, and print the seconds it took."""
    # Records of some 2,000 characters, as documents of real text have.
    texts = world_texts(25_000)
    texts = ["\n".join(texts[i : i + 40]) for i in range(0, len(texts), 40)]
    characters = sum(len(text) + 1 for text in texts)
    repeats = max(1, size * 1_000_000 // characters)
    tokenizer = build_tokenizer(CHARACTERS, {}, ".", 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "world.jsonl")
        write_lines(path, texts, repeats)
        seconds = pack_file(path, tokenizer, repeats * characters // 128 * 128)
    print(f"{seconds:.0f}")


def memory(megabytes: list[str]) -> None:
    """Peak memory of packing files of some sizes.

    The mapped file is told apart: its pages are the kernel's to take back.
    """
    for size in megabytes:
        own = mapped = 0
        # The Arrow copy of the file goes into a folder that is removed, not into the user's cache.
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "pack", size]
            env = {**os.environ, "HF_DATASETS_CACHE": cache}
            child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
            while child.poll() is None:
                lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                found = dict(line.split(":", 1) for line in lines)
                own = max(own, int(found.get("RssAnon", "0 kB").split()[0]))
                mapped = max(mapped, int(found.get("RssFile", "0 kB").split()[0]))
                time.sleep(0.05)
        assert child.stdout and not child.returncode
        print(
            f"{size:>5} MB in {child.stdout.read().strip()} s: own memory {own / 1024:,.0f} MB, "
            f"files mapped {mapped / 1024:,.0f} MB"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["pack"]:
        pack_megabytes(int(sys.argv[2]))
    elif sys.argv[1:2] == ["memory"]:
        memory(sys.argv[2:])
    else:
        pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
        speed_ratio("characters of the world", CHARACTERS, pairs)
        speed_ratio("byte-level BPE, 1024 tokens", BPE, pairs)
        memory(["5", "20"])
