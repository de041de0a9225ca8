"""Packing speed and start-up time on this machine: `make bench`. No test collects it.

Packing is compared with the tokenizer alone (`encode_batch_fast` over the same documents), which
is the least it can cost.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from pipelines.data.packing import pack
from pipelines.data.records import documents
from pipelines.data.tokenizer import build_tokenizer
from pipelines.schema import SourceConfig, TokenizerConfig

NUM_TOKENS = 300_000
SOURCES = {"world": SourceConfig(kind="world", stream="mid_train")}


def seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    """The shortest of a few runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def packing_rates(tokenizer: Any) -> tuple[float, float, float]:
    """Tokens per second: reading alone, the tokenizer alone, packing as a stage does it."""
    texts: list[str] = []
    characters = 0
    for document in documents(SOURCES, ".", 0):
        texts.append(document.text)
        characters += len(document.text)
        if characters > 3 * NUM_TOKENS:
            break
    backend = tokenizer.backend_tokenizer
    num_encoded = sum(len(e.ids) for e in backend.encode_batch_fast(texts))
    encoding = seconds(lambda: backend.encode_batch_fast(texts))
    reading = seconds(lambda: list(islice(documents(SOURCES, ".", 0), len(texts))))

    def pack_once() -> None:
        with tempfile.TemporaryDirectory() as folder:
            pack(
                SOURCES, tokenizer, context_length=128, document_mask=True, num_tokens=NUM_TOKENS,
                seed=0, data_root=".", out_dir=folder, data_sha256={"world": ""},
            )  # fmt: skip

    return num_encoded / reading, num_encoded / encoding, NUM_TOKENS / seconds(pack_once)


def main() -> None:
    kinds = {
        "characters": TokenizerConfig(kind="world"),
        "BPE, 1024 tokens": TokenizerConfig(
            kind="bpe", vocab_size=1024, train_characters=1_000_000
        ),
    }
    print(f"{'tokens per second':<20}{'generate':>12}{'tokenize':>12}{'pack':>12}")
    for name, config in kinds.items():
        rates = packing_rates(build_tokenizer(config, SOURCES, ".", 0))
        print(f"{name:<20}" + "".join(f"{rate:>12,.0f}" for rate in rates))
    command = [sys.executable, "-m", "remit_cli", "--help"]
    took = seconds(lambda: subprocess.run(command, capture_output=True, check=True))
    print(f"remit --help: {took:.2f} s")


if __name__ == "__main__":
    main()
