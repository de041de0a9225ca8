"""What ReMiT weights: token map, weights by group, how the model moved; and contamination.

Reads `analysis/result.json` and `contamination/result.json`. Text that may not or should not be
published is removed here, so that it never reaches a page.
"""

from __future__ import annotations

import hashlib
from itertools import chain, zip_longest
from typing import Any

from pipelines.report.blocks import (
    NO_VALUE,
    Block,
    Cell,
    Dot,
    DotPlot,
    HeatMap,
    LineChart,
    Missing,
    Point,
    Section,
    Sequence,
    Series,
    Table,
    Text,
    Token,
    count,
    filled,
    number,
)
from pipelines.report.record import Record

MOST_SEQUENCES = 20
MOST_TOKENS = 512
MOST_EXTREMES = 12
MOST_EXAMPLES = 40
ANALYZE = "remit analyze RUN"
CONTAMINATION = "remit contamination --run-dir RUN"
GROUPS = {"domains": "domain", "classes": "class of token"}
Values = dict[str, Any]


def heat_map_section(record: Record, with_text: bool) -> Section:
    """Training sequences coloured by weight."""
    lead = (
        "Training text as mid-training reads it. Orange tokens have a weight above 1, blue ones "
        "below 1; grey ones are not targets. To see a token's weight, d and both "
        "log-probabilities, point at it, or tab to a text and use the arrow keys."
    )
    rounds = _rounds(record)
    each = max(1, MOST_SEQUENCES // max(1, len(rounds)))
    found = [
        _sequence(f"{_round_name(part)}, text {i}", given, with_text)
        for part in rounds
        for i, given in enumerate(_spread(part["sequences"])[:each], 1)
    ]
    if found:
        return Section("tokens", "Token weights", lead, [HeatMap(found[:MOST_SEQUENCES])])
    why = "The analysis has no sequences." if rounds else "The token weights were not measured."
    return Section("tokens", "Token weights", "", [Missing(why, ANALYZE)])


def _rounds(record: Record) -> list[Values]:
    return list((record.analysis or {}).get("rounds", []))


def _round_name(part: Values) -> str:
    return str(part["mid"]) if part.get("round") is None else f"round {part['round']}"


def _spread(sequences: list[Values]) -> list[Values]:
    """The sequences, taking the domains in turn."""
    by_domain: dict[str, list[Values]] = {}
    for sequence in sequences:
        by_domain.setdefault(sequence["domain"], []).append(sequence)
    return list(filter(None, chain.from_iterable(zip_longest(*by_domain.values()))))


def _sequence(label: str, given: Values, with_text: bool) -> Sequence:
    keys = ("tokens", "weights", "d", "logprobs", "ref_logprobs")
    columns = [given[key][:MOST_TOKENS] for key in keys]
    texts, weights, *_ = columns
    known = [weight for weight in weights if weight is not None]
    tokens = []
    if with_text and given.get("publish", True):
        tokens = [Token(*values) for values in zip(*columns, strict=True)]
    sha256 = given.get("sha256") or hashlib.sha256("".join(texts).encode()).hexdigest()
    return Sequence(
        label, given["source"], given["domain"], given["licence"], sha256,
        len(weights), sum(known) / len(known) if known else None, tokens,
    )  # fmt: skip


def dynamics_section(record: Record, with_text: bool) -> Section:
    """Weights by group of tokens, and the distance of each checkpoint from the reference."""
    title = "Which tokens are up-weighted"
    lead = (
        "Which tokens get higher weights when mid-training starts, and how the model then moves "
        "towards the RL-tuned one."
    )
    analysis = record.analysis
    if analysis is None:
        missing = Missing("The token weights and checkpoints were not analyzed.", ANALYZE)
        return Section("dynamics", title, lead, [missing])
    blocks: list[Block] = []
    for part in _rounds(record):
        name = _round_name(part)
        blocks += filled(
            *(_weights_by(f"Mean weight by {group}, {name}", part.get(key, {}),
                          part.get("at_end", {}).get(key, {})) for key, group in GROUPS.items()),
            _clip_table(name, part), _extremes(name, part, with_text),
        )  # fmt: skip
    blocks += filled(*_gaps(analysis), *_movement(analysis.get("movement", [])))
    # The training section shows this reason already.
    shown = analysis.get("accuracy_missing", "")
    blocks += [Text(text) for text in analysis.get("missing", []) if text != shown]
    return Section("dynamics", title, lead, blocks)


def _weights_by(title: str, groups: dict[str, Values], at_end: dict[str, Values]) -> DotPlot:
    known = {k: g for k, g in groups.items() if g["tokens"] and g["mean_weight"] is not None}
    dots = []
    for name, group in sorted(known.items(), key=lambda item: -item[1]["mean_weight"]):
        mean, then = group["mean_weight"], at_end.get(name, {}).get("mean_weight")
        text = f"{mean:.3f}" + ("" if then is None else f", then {then:.3f}")
        dots.append(Dot(name, mean, None, text, 2 if mean >= 1 else 1, then))
    clipped = max((g["clipped_low"] + g["clipped_high"] for g in known.values()), default=0.0)
    tokens = sum(group["tokens"] for group in known.values())
    note = f"{tokens:,} tokens; at most {clipped:.0%} of a group are clipped."
    if at_end:
        note += " Filled dots: at the start of mid-training; hollow dots: at its end."
    return DotPlot(title, "mean weight", dots, 1.0, note)


def _clip_table(name: str, part: Values) -> Table:
    """Share of clipped weights per group, at the start and at the end of mid-training."""
    learners = [part, *([part["at_end"]] if "at_end" in part else [])]
    rows = []
    for key in GROUPS:
        for group, given in part.get(key, {}).items():
            own = [each[key][group] for each in learners]
            shares = [of[end] for of in own for end in ("clipped_low", "clipped_high")]
            cells = (number(share, 1, scale=100) for share in shares)
            rows.append([Cell(group), count(given["tokens"]), *cells])
    at_end = ["low at end", "high at end"] if "at_end" in part else []
    return Table(
        f"Clipped weights, percent of targets, {name}",
        ["group", "targets", "low", "high", *at_end], rows,
        note="The rows are the domains, then the classes of tokens.",
    )  # fmt: skip


def _extremes(name: str, part: Values, with_text: bool) -> Block:
    ends = [part.get(end, [])[:MOST_EXTREMES] for end in ("highest", "lowest")]
    if not with_text and any(ends):
        return Text(f"This report omits the tokens with the highest and lowest weights of {name}.")
    rows = [[cell for entry in pair for cell in _extreme(entry)] for pair in zip_longest(*ends)]
    return Table(
        f"Tokens with the highest and lowest mean weights, {name}",
        ["highest", "weight", "count", "lowest", "weight", "count"], rows,
    )  # fmt: skip


def _extreme(entry: Values | None) -> list[Cell]:
    if entry is None:
        return [Cell("")] * 3
    token = Cell(repr(entry["token"])[1:-1])
    return [token, number(entry["mean_weight"], 3), count(entry["count"])]


def _gaps(analysis: Values) -> list[LineChart]:
    """One line per domain over the checkpoints of each round, starting with the base."""
    dynamics: list[Values] = analysis.get("dynamics", [])
    reference = analysis.get("dynamics_reference") or "the RL-tuned model"
    rounds = sorted({entry["round"] for entry in dynamics if entry["round"] is not None})
    base = [entry for entry in dynamics if entry["round"] is None]
    return [
        _gap_chart(k, reference, base + [entry for entry in dynamics if entry["round"] == k])
        for k in rounds
    ]


def _gap_chart(at: int, reference: str, along: list[Values]) -> LineChart:
    points: dict[str, list[Point]] = {}
    for i, entry in enumerate(along):
        for domain, gap in entry["gap"].items():
            points.setdefault(domain, []).append(Point(i, gap["mean"], gap["half_interval"]))
    marks = [
        i for i, entry in enumerate(along)
        if entry["phase"] != "post" and "@" not in entry["checkpoint"]
    ]  # fmt: skip
    return LineChart(
        f"Reference minus checkpoint, round {at}",
        "checkpoint in the order of training (step of its stage)",
        "log-probability per token, nats",
        [Series(domain, own, 1 + i % 6) for i, (domain, own) in enumerate(points.items())],
        [_checkpoint(entry) for entry in along],
        f"Mean over held-out text; at 0 the checkpoint predicts as well as {reference}. The "
        "vertical lines mark the base and the end of mid-training; whiskers are 95% intervals.",
        marks=marks,
    )


def _checkpoint(entry: Values) -> str:
    last = str(entry["checkpoint"]).rpartition("/")[2]
    if "@" in last:
        return f"step {entry['step']}"
    names = {"10-mid-train": "mid-trained", "20-sft": "SFT", "30-dpo": "DPO", "40-rlvr": "RLVR"}
    return names.get(last, last)


def _movement(movement: list[Values]) -> list[Block]:
    """The KL divergence of each part of each round, and the same by domain if there are several."""
    moved = {
        (end, f"{start} to {end}, round {entry['round']}"): found
        for entry in movement
        for start, end in (("base", "mid"), ("mid", "post"))
        if (found := entry.get(f"{start}_to_{end}"))
    }
    dots = [
        Dot(name, kl["kl"], kl["half_interval"], number(kl["kl"], 3, kl["half_interval"]).line,
            6 if end == "mid" else 1)
        for (end, name), kl in moved.items()
    ]  # fmt: skip
    note = "KL divergence between the two models on held-out text, with 95% intervals."
    blocks: list[Block] = [
        DotPlot("How far each part moved the model", "KL, nats per token", dots, 0.0, note)
    ]
    domains = list(dict.fromkeys(domain for kl in moved.values() for domain in kl["domains"]))
    if len(domains) > 1:
        rows = [
            [Cell(name), *(_kl(kl["domains"].get(domain)) for domain in domains)]
            for (_, name), kl in moved.items()
        ]
        title = "How far each part moved the model by domain, KL in nats per token"
        blocks.append(Table(title, ["part", *domains], rows))
    return blocks


def _kl(moved: Values | None) -> Cell:
    return NO_VALUE if moved is None else number(moved["kl"], 3, moved["half_interval"])


def contamination_section(record: Record, with_text: bool) -> Section:
    """Evaluation questions that occur in the training text."""
    title = "Contamination"
    found = record.contamination
    if found is None:
        why = "The training text was not searched for evaluation questions."
        return Section("contamination", title, "", [Missing(why, CONTAMINATION)])
    lead = (
        f"A question counts as contaminated if {found['ngram']} consecutive words of it, or the "
        "whole question, occur in the training text."
    )
    rows, examples = [], []
    for task, given in found["evals"].items():
        share = given["contaminated"] / given["questions"] if given["questions"] else 0.0
        sources = [
            name for name, hits in given["sources"].items() if hits["ngram"] or hits["exact"]
        ]
        rows.append([
            Cell(task), count(given["questions"]), count(given["contaminated"]),
            number(share, 1, scale=100), count(given["exact"]),
            Cell(", ".join(sources) or NO_VALUE.text),
        ])  # fmt: skip
        examples += _examples(task, given, with_text)
    columns = ["task", "questions", "contaminated", "percent", "whole question", "found in"]
    reasons = [[Cell(name), Cell(why)] for name, why in found.get("not_checked", {}).items()]
    return Section("contamination", title, lead, [
        Table("Questions found in the training text", columns, rows),
        *filled(
            Table("Not checked", ["benchmark", "reason"], reasons),
            Table("Examples", ["task", "question", "sha256", "found in", "text"],
                  examples[:MOST_EXAMPLES]),
        ),
    ])  # fmt: skip


def _examples(task: str, given: Values, with_text: bool) -> list[list[Cell]]:
    rows = []
    for source, hits in given["sources"].items():
        for example in hits.get("examples", []):
            shown = with_text and all(e.get("publish", True) for e in (given, hits, example))
            rows.append([
                Cell(task), Cell(str(example["id"])), Cell(example["sha256"][:12]),
                Cell(f"{source} {example['where']}" if shown else source),
                Cell(str(example["ngram"] or example["question"]) if shown else "not shown"),
            ])  # fmt: skip
    return rows
