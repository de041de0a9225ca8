"""What ReMiT weights: token map, weights by group, how the model moved; and contamination.

Reads `analysis/result.json` and `contamination/result.json`. Text that may not or should not be
published is removed here, so that it never reaches a page.
"""

from __future__ import annotations

import hashlib
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
)
from pipelines.report.record import Record

MOST_SEQUENCES = 20
MOST_TOKENS = 512
ANALYZE = "remit analyze RUN"
CONTAMINATION = "remit contamination --config RECIPE --run-dir RUN"


def heat_map_section(record: Record, with_text: bool) -> Section:
    """Training sequences coloured by weight."""
    lead = (
        "Training text as mid-training reads it. Orange tokens have a weight above 1, blue ones "
        "below 1; grey ones are not targets. To see a token's weight, d and both "
        "log-probabilities, point at it, or tab to a text and use the arrow keys."
    )
    rounds = _rounds(record)
    if not rounds:
        return Section(
            "tokens",
            "Token weights",
            "",
            [Missing("The token weights were not measured.", ANALYZE)],
        )
    each = max(1, MOST_SEQUENCES // len(rounds))
    found = [
        _sequence(f"{_round_name(part)}, text {number}", given, with_text)
        for part in rounds
        for number, given in enumerate(_spread(part["sequences"], each), 1)
    ]
    if not found:
        return Section(
            "tokens", "Token weights", "", [Missing("The analysis has no sequences.", ANALYZE)]
        )
    return Section("tokens", "Token weights", lead, [HeatMap(found[:MOST_SEQUENCES])])


def _rounds(record: Record) -> list[dict[str, Any]]:
    return list((record.analysis or {}).get("rounds", []))


def _round_name(part: dict[str, Any]) -> str:
    return str(part["mid"]) if part.get("round") is None else f"round {part['round']}"


def _spread(sequences: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` of the sequences, taking the domains in turn."""
    by_domain: dict[str, list[dict[str, Any]]] = {}
    for sequence in sequences:
        by_domain.setdefault(sequence["domain"], []).append(sequence)
    longest = max((len(own) for own in by_domain.values()), default=0)
    turns = [own[i] for i in range(longest) for own in by_domain.values() if i < len(own)]
    return turns[:count]


def _sequence(label: str, given: dict[str, Any], with_text: bool) -> Sequence:
    texts = given["tokens"][:MOST_TOKENS]
    weights = given["weights"][:MOST_TOKENS]
    known = [weight for weight in weights if weight is not None]
    tokens = []
    if with_text and given.get("publish", True):
        columns = (given[key][:MOST_TOKENS] for key in ("d", "logprobs", "ref_logprobs"))
        tokens = [Token(*values) for values in zip(texts, weights, *columns, strict=True)]
    sha256 = given.get("sha256") or _sha256("".join(texts))
    return Sequence(
        label, given["source"], given["domain"], given["licence"], sha256,
        len(weights), sum(known) / len(known) if known else None, tokens,
    )  # fmt: skip


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def dynamics_section(record: Record, with_text: bool) -> Section:
    """Weights by group of tokens, and the distance of each checkpoint from the reference."""
    lead = (
        "Which tokens get higher weights when mid-training starts, and how the model then moves "
        "towards the RL-tuned one."
    )
    if record.analysis is None:
        missing = Missing("The token weights and checkpoints were not analyzed.", ANALYZE)
        return Section("dynamics", "Which tokens ReMiT up-weights", lead, [missing])
    blocks: list[Block] = []
    for part in _rounds(record):
        name = _round_name(part)
        for title, key in (("domain", "domains"), ("class of token", "classes")):
            at_end = part.get("at_end", {}).get(key, {})
            blocks += _weights_by(f"Mean weight by {title}, {name}", part.get(key, {}), at_end)
        blocks += [*_clip_table(name, part), *_extremes(name, part, with_text)]
    blocks += _gaps(record.analysis)
    blocks += _movement(record.analysis.get("movement", []))
    # The training section shows this reason already.
    shown = record.analysis.get("accuracy_missing", "")
    blocks += [Text(text) for text in record.analysis.get("missing", []) if text != shown]
    return Section("dynamics", "Which tokens ReMiT up-weights", lead, blocks)


def _weights_by(
    title: str, groups: dict[str, dict[str, Any]], at_end: dict[str, dict[str, Any]]
) -> list[Block]:
    known = {k: g for k, g in groups.items() if g["tokens"] and g["mean_weight"] is not None}
    ordered = sorted(known.items(), key=lambda item: -item[1]["mean_weight"])
    if not ordered:
        return []
    dots = [
        Dot(
            name, group["mean_weight"], None,
            f"{group['mean_weight']:.3f}"
            + (f", then {at_end[name]['mean_weight']:.3f}" if name in at_end else ""),
            2 if group["mean_weight"] >= 1 else 1,
            at_end[name]["mean_weight"] if name in at_end else None,
        )
        for name, group in ordered
    ]  # fmt: skip
    clipped = max(g["clipped_low"] + g["clipped_high"] for g in known.values())
    tokens = sum(group["tokens"] for group in known.values())
    note = f"{tokens:,} tokens; at most {clipped:.0%} of a group are clipped."
    if at_end:
        note += " Filled dots: at the start of mid-training; hollow dots: at its end."
    return [DotPlot(title, "mean weight", dots, 1.0, note)]


def _clip_table(name: str, part: dict[str, Any]) -> list[Block]:
    """Share of clipped weights per group, at the start and at the end of mid-training."""
    learners = [part, *([part["at_end"]] if "at_end" in part else [])]
    rows = []
    for key in ("domains", "classes"):
        for group, given in part.get(key, {}).items():
            own = [each[key][group] for each in learners]
            ends = [g[end] for g in own for end in ("clipped_low", "clipped_high")]
            rows.append([Cell(group), _count(given["tokens"]), *map(_share, ends)])
    if not rows:
        return []
    columns = [
        "group",
        "targets",
        "low",
        "high",
        *(["low at end", "high at end"] * (len(learners) - 1)),
    ]
    return [
        Table(
            f"Clipped weights, percent of targets, {name}", columns, rows,
            note="The rows are the domains, then the classes of tokens.",
        )
    ]  # fmt: skip


def _share(share: float | None) -> Cell:
    return NO_VALUE if share is None else Cell(f"{100 * share:.1f}", value=share)


def _extremes(name: str, part: dict[str, Any], with_text: bool) -> list[Block]:
    highest, lowest = part.get("highest", []), part.get("lowest", [])
    if not highest and not lowest:
        return []
    if not with_text:
        return [
            Text(f"This report omits the tokens with the highest and lowest weights of {name}.")
        ]
    rows = [
        [*_extreme(highest, i), *_extreme(lowest, i)]
        for i in range(min(12, max(len(highest), len(lowest))))
    ]
    return [
        Table(
            f"Tokens with the highest and lowest mean weights, {name}",
            ["highest", "weight", "count", "lowest", "weight", "count"], rows,
        )
    ]  # fmt: skip


def _extreme(entries: list[dict[str, Any]], index: int) -> list[Cell]:
    if index >= len(entries):
        return [Cell("")] * 3
    entry = entries[index]
    return [
        Cell(repr(entry["token"])[1:-1]),
        Cell(f"{entry['mean_weight']:.3f}", value=entry["mean_weight"]),
        Cell(f"{entry['count']:,}", value=entry["count"]),
    ]


def _gaps(analysis: dict[str, Any]) -> list[Block]:
    """One line per domain over the checkpoints of each round, starting with the base."""
    dynamics: list[dict[str, Any]] = analysis.get("dynamics", [])
    reference = analysis.get("dynamics_reference") or "the RL-tuned model"
    base = [entry for entry in dynamics if entry["round"] is None]
    rounds = sorted({entry["round"] for entry in dynamics if entry["round"] is not None})
    return [
        _gap_chart(number, reference, base + [e for e in dynamics if e["round"] == number])
        for number in rounds
    ]


def _gap_chart(number: int, reference: str, along: list[dict[str, Any]]) -> LineChart:
    domains = list(dict.fromkeys(domain for entry in along for domain in entry["gap"]))
    series = [
        Series(
            domain,
            [
                Point(i, entry["gap"][domain]["mean"], entry["gap"][domain]["half_interval"])
                for i, entry in enumerate(along)
                if domain in entry["gap"]
            ],
            1 + index % 6,
        )
        for index, domain in enumerate(domains)
    ]
    return LineChart(
        f"Reference minus checkpoint, round {number}",
        "checkpoint in the order of training (step of its stage)",
        "log-probability per token, nats",
        series,
        [_checkpoint(entry) for entry in along],
        f"Mean over held-out text; at 0 the checkpoint predicts as well as {reference}. The "
        "vertical lines mark the base and the end of mid-training; whiskers are 95% intervals.",
        marks=[
            i
            for i, entry in enumerate(along)
            if entry["phase"] != "post" and "@" not in entry["checkpoint"]
        ],
    )


def _checkpoint(entry: dict[str, Any]) -> str:
    last = str(entry["checkpoint"]).rpartition("/")[2]
    if "@" in last:
        return f"step {entry['step']}"
    names = {"10-mid-train": "mid-trained", "20-sft": "SFT", "30-dpo": "DPO", "40-rlvr": "RLVR"}
    return names.get(last, last)


def _movement(movement: list[dict[str, Any]]) -> list[Block]:
    dots = [
        Dot(
            f"{start} to {end}, round {entry['round']}", moved["kl"], moved["half_interval"],
            _with_half(moved["kl"], moved["half_interval"]), 6 if end == "mid" else 1,
        )
        for entry in movement
        for start, end in (("base", "mid"), ("mid", "post"))
        if (moved := entry.get(f"{start}_to_{end}"))
    ]  # fmt: skip
    if not dots:
        return []
    note = "KL divergence between the two models on held-out text, with 95% intervals."
    return [
        DotPlot("How far each part moved the model", "KL, nats per token", dots, 0.0, note),
        *_movement_by_domain(movement),
    ]


def _movement_by_domain(movement: list[dict[str, Any]]) -> list[Block]:
    moved = {
        f"{start} to {end}, round {entry['round']}": entry[key]["domains"]
        for entry in movement
        for start, end in (("base", "mid"), ("mid", "post"))
        if (key := f"{start}_to_{end}") in entry
    }
    domains = list(dict.fromkeys(domain for of in moved.values() for domain in of))
    if len(domains) < 2:
        return []
    rows = [[Cell(name), *(_kl(of.get(domain)) for domain in domains)]
            for name, of in moved.items()]  # fmt: skip
    return [
        Table(
            "How far each part moved the model by domain, KL in nats per token",
            ["part", *domains],
            rows,
        )
    ]


def _kl(moved: dict[str, Any] | None) -> Cell:
    if moved is None:
        return NO_VALUE
    half = (
        ""
        if moved["half_interval"] is None
        else f"\N{PLUS-MINUS SIGN} {moved['half_interval']:.3f}"
    )
    return Cell(f"{moved['kl']:.3f}", half, moved["kl"])


def _with_half(value: float, half: float | None) -> str:
    return f"{value:.3f}" + ("" if half is None else f" ± {half:.3f}")


def contamination_section(record: Record, with_text: bool) -> Section:
    """Evaluation questions that occur in the training text."""
    title = "Contamination"
    if record.contamination is None:
        missing = Missing(
            "The training text was not searched for evaluation questions.", CONTAMINATION
        )
        return Section("contamination", title, "", [missing])
    found = record.contamination
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
            Cell(task), _count(given["questions"]), _count(given["contaminated"]),
            Cell(f"{100 * share:.1f}", value=share), _count(given["exact"]),
            Cell(", ".join(sources) or NO_VALUE.text),
        ])  # fmt: skip
        examples += _examples(task, given, with_text)
    columns = ["task", "questions", "contaminated", "percent", "whole question", "found in"]
    blocks: list[Block] = [Table("Questions found in the training text", columns, rows)]
    if found.get("not_checked"):
        reasons = [[Cell(name), Cell(why)] for name, why in found["not_checked"].items()]
        blocks.append(Table("Not checked", ["benchmark", "reason"], reasons))
    if examples:
        columns = ["task", "question", "sha256", "found in", "text"]
        blocks.append(Table("Examples", columns, examples[:40]))
    return Section("contamination", title, lead, blocks)


def _count(number: int) -> Cell:
    return Cell(f"{number:,}", value=number)


def _examples(task: str, given: dict[str, Any], with_text: bool) -> list[list[Cell]]:
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
