"""What the run cost, and where its numbers come from."""

from __future__ import annotations

import json
from typing import Any

from pipelines.plan.estimate import stage_flops
from pipelines.quantities import duration, quantity
from pipelines.report.blocks import NO_VALUE, Cell, Fold, Missing, Section, Table
from pipelines.report.record import Record, StageRecord


def cost_section(record: Record) -> Section:
    """Tokens, FLOPs and hours of each complete stage."""
    lead = (
        "Time is measured and includes the start of each stage. FLOPs are computed: 6 per "
        "parameter and training token, 2 per parameter and token of a forward pass."
    )
    done = [stage for stage in record.stages.values() if stage.result]
    if not done:
        return Section("cost", "Cost", lead, [Missing("No stage is complete yet.", "remit plan")])
    parameters = max(stage.result.get("parameters", 0) for stage in done)
    rows = [_cost_row(stage, parameters) for stage in done]
    totals = [sum(row[column].value or 0.0 for row in rows) for column in (2, 3, 4, 5)]
    shown = zip((quantity, quantity, duration, _hours), totals, strict=True)
    rows.append([
        Cell("all stages"), NO_VALUE, *(Cell(text(total), value=total) for text, total in shown),
        NO_VALUE,
    ])  # fmt: skip
    columns = ["stage", "ranks", "tokens", "FLOPs", "time", "rank-hours", "tokens/s"]
    note = f"The model has {parameters:,} parameters." if parameters else ""
    if parameters and any(stage.plan is None for stage in done):
        note += " FLOPs are missing for stages made by a version of remit with other settings."
    table = Table("Stage by stage", columns, rows, [len(rows) - 1], note)
    return Section("cost", "Cost", lead, [table])


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3f}"


def _cost_row(stage: StageRecord, parameters: int) -> list[Cell]:
    seconds, ranks = stage.seconds or 0.0, stage.result.get("world_size", 1)
    # The trainer's count of tokens for a stage whose result has none.
    counted = (stage.metrics[-1].get("num_tokens") or 0.0) if stage.metrics else 0.0
    steps = stage.result.get("steps", 0)
    flops = stage_flops(stage.plan, parameters, steps) if parameters and stage.plan else 0.0
    return [
        Cell(stage.name),
        Cell(str(ranks), value=ranks),
        _known(float(stage.result.get("tokens", counted))),
        _known(flops),
        Cell(duration(seconds), value=seconds),
        Cell(_hours(seconds * ranks), value=seconds * ranks),
        _known(stage.result.get("tokens_per_second")),
    ]


def _known(value: float | None) -> Cell:
    return Cell(quantity(value), value=value) if value else NO_VALUE


def provenance_section(record: Record) -> Section:
    """Identity, inputs, versions, seed and command of every stage."""
    lead = (
        "The identity is a hash of everything that determines a stage's result: settings, data and "
        "input models. Stages with equal identities have equal results."
    )
    started = [stage for stage in record.stages.values() if stage.spec]
    if not started:
        missing = Missing("No stage has started.", record.resume_command)
        return Section("provenance", "Provenance", lead, [missing])
    rows = [
        [
            Cell(stage.name), Cell(stage.state), Cell(stage.spec["identity"][:12]),
            Cell(stage.result.get("model_sha256", NO_VALUE.text)[:12]),
            Cell(str(stage.spec["config"]["seed"]), value=stage.spec["config"]["seed"]),
        ]
        for stage in started
    ]  # fmt: skip
    commands = dict.fromkeys(e["command"] for e in record.entries if "command" in e)
    return Section("provenance", "Provenance", lead, [
        Table("Stages", ["stage", "state", "identity", "model sha256", "seed"], rows),
        Fold("Command lines", [("command", command) for command in commands]),
        *(Fold(stage.name, _facts(stage)) for stage in started),
    ])  # fmt: skip


def _facts(stage: StageRecord) -> list[tuple[str, str]]:
    spec = stage.spec
    environment: dict[str, Any] = stage.result.get("environment", {})
    versions = environment.get("versions", {})
    model = stage.result.get("model_sha256")
    facts = [
        ("identity", spec["identity"]),
        ("seed", str(spec["config"]["seed"])),
        *(
            (f"input {role}", f"{stage.inside(given['path'])}, sha256 {given['sha256']}")
            for role, given in spec["inputs"].items()
        ),
        *((f"data {key}", f"sha256 {value}") for key, value in spec["data_sha256"].items()),
        ("model", f"sha256 {model}" if model else ""),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("environment", ", ".join(f"{k} {v}" for k, v in environment.items() if k != "versions")),
        ("settings", json.dumps(_changed(spec["identity_fields"]))),
        ("command", str(stage.start.get("command", ""))),
    ]
    return [(name, value) for name, value in facts if value]


def _changed(fields: dict[str, Any]) -> dict[str, Any]:
    """The settings that determine the result, without hashes (listed above) and empty values."""
    hidden = ("data ", "input ")
    return {k: v for k, v in fields.items() if not k.startswith(hidden) and v not in ("", {}, [])}
