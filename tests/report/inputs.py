"""Inputs of a report as other commands leave them, made of sentences of the built-in world."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

from pipelines.world import FAMILIES, records

CLASSES = ("digits", "connectives", "code", "names", "punctuation", "other")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


def wave(number: int, size: float) -> float:
    """A number of -size to size that looks irregular and is the same every time."""
    return round(size * (((number * 7919) % 1999) / 999.5 - 1), 4)


def sequence(number: int, hostile: str = "") -> dict[str, Any]:
    """A training sequence of the world; every fifth token is not a target."""
    texts = itertools.islice(records("mid_train", number), 6)
    found = list(texts)
    tokens = re.findall(r"\s*\S+|\s+", "\n".join(item["text"] for item in found))[:120]
    tokens = [hostile, *tokens] if hostile else tokens
    known = [i % 11 != 0 for i in range(len(tokens))]
    d = [wave(i + 31 * number, 0.6) if k else None for i, k in enumerate(known)]
    logprobs = [-abs(wave(i + 17, 3.0)) if k else None for i, k in enumerate(known)]
    return {
        "source": ("world", "world-prose")[number % 2], "domain": ("problem", "prose")[number % 2],
        "licence": "Apache-2.0" if number % 2 else "CC0-1.0", "publish": True, "tokens": tokens,
        "weights": [None if x is None else min(1.2, max(0.8, 1 + x / 2)) for x in d],
        "d": d, "logprobs": logprobs,
        "ref_logprobs": [
            None if x is None or p is None else round(x + p, 4)
            for x, p in zip(d, logprobs, strict=True)
        ],
    }  # fmt: skip


def weighed(number: int) -> dict[str, float]:
    return {
        "tokens": 4000 + 900 * number, "mean_weight": 1 + wave(number + 5, 0.08),
        "clipped_low": 0.1, "clipped_high": 0.12,
    }  # fmt: skip


def moved(kl: float, hostile: str = "") -> dict[str, Any]:
    """A KL divergence, and that of each domain."""
    whole = {"kl": kl, "half_interval": kl / 10}
    return whole | {"domains": {hostile + name: dict(whole) for name in ("problem", "prose")}}


def analysis(rounds: int = 1, hostile: str = "") -> dict[str, Any]:
    """`analysis/result.json`, with one sequence that may not be published."""
    secret = sequence(99) | {"publish": False, "source": "closed", "domain": "closed"}
    secret["tokens"] = ["the-secret-text", *secret["tokens"][1:]]
    domains = ("problem", "prose")
    checkpoints = [("base", "pretrain", None, 0)]
    for k in range(1, rounds + 1):
        mid = f"round-{k}/10-mid-train"
        checkpoints += [(f"{mid}@{n}", "anneal", k, 25 * n) for n in (1, 2, 3)]
        checkpoints += [(mid, "anneal", k, 100), (f"round-{k}/20-sft", "post", k, 0),
                        (f"round-{k}/40-rlvr", "post", k, 0)]  # fmt: skip
    along = [("base", None, 0.0, 0.06)] + [
        (f"round-{k}/10-mid-train" + ("" if n == 4 else f"@{n}"), k, n / 4, 0.1 * n + 0.02 * k)
        for k in range(rounds + 1)
        for n in (1, 2, 3, 4)
    ]
    return {
        "accuracy_missing": "",
        "accuracy": [
            {"checkpoint": name, "round": k, "step": 25, "done": done, "average": average,
             "average_half_interval": 0.04,
             "tasks": {family: {"accuracy": average, "interval": [0.0, 1.0], "questions": 50}
                       for family in FAMILIES}}
            for name, k, done, average in along
        ],
        "rounds": [
            {
                "round": k, "mid": f"round-{k}/10-mid-train", "reference": f"round-{k - 1}/40-rlvr",
                "domains": {hostile + name: weighed(i) for i, name in enumerate(domains)},
                "classes": {name: weighed(i + 3 * k) for i, name in enumerate(CLASSES)},
                "at_end": {
                    "domains": {hostile + name: weighed(i + 7) for i, name in enumerate(domains)},
                    "classes": {name: weighed(i + 3 * k + 7) for i, name in enumerate(CLASSES)},
                },
                "highest": [
                    {"token": f"{hostile} {i}\n", "count": 40 - i, "mean_weight": 1.2 - i / 90}
                    for i in range(8)
                ],
                "lowest": [{"token": f" {w}", "count": 90 - i, "mean_weight": 0.8 + i / 90}
                           for i, w in enumerate(("so", "then", "the", "is", "of", "a"))],
                "sequences": [*(sequence(10 * k + n, hostile) for n in range(6)), secret],
            }
            for k in range(1, rounds + 1)
        ],
        "dynamics": [
            {
                "checkpoint": name, "phase": phase, "round": k, "step": step, "tokens": 2048 * step,
                "gap": {domain: {"mean": (1.2 - 0.3 * j) * 0.72**i, "half_interval": 0.05}
                        for j, domain in enumerate(domains)},
            }
            for i, (name, phase, k, step) in enumerate(checkpoints)
        ],
        "movement": [
            {"round": k, "base_to_mid": moved(0.4, hostile), "mid_to_post": moved(0.11, hostile)}
            for k in range(rounds + 1)
        ],
    }  # fmt: skip


def contamination(hostile: str = "") -> dict[str, Any]:
    """`contamination/result.json`: one task may not be published."""
    evals: dict[str, Any] = {}
    for number, family in enumerate([*FAMILIES[:3], "closed-exam"]):
        question = (
            "the-secret-question" if family == "closed-exam" else f"{hostile} what is {number}?"
        )
        example = {
            "id": f"{family}-{number}", "question": question, "ngram": question,
            "sha256": hashlib.sha256(question.encode()).hexdigest(), "where": "line 12",
        }  # fmt: skip
        evals[family] = {
            "questions": 200, "publish": family != "closed-exam", "contaminated": number,
            "exact": 0, "sources": {"world": {"ngram": number, "exact": 0, "examples": [example]}},
        }  # fmt: skip
    return {"ngram": 13, "evals": evals}


def with_inputs(run: Path, copy: Path, hostile: str = "") -> Path:
    """A copy of a run, without models, that was analyzed and searched for contamination."""
    skipped = shutil.ignore_patterns("model", "checkpoints", "*.bin", "tokenizer")
    shutil.copytree(run, copy, ignore=skipped)
    for name, values in (
        ("analysis", analysis(1, hostile)),
        ("contamination", contamination(hostile)),
    ):
        path = copy / name / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return copy
