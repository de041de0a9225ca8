"""The identity of a stage: everything that its result depends on, and nothing else.

identity = hash of (the config fields that can change the result, the content hashes of the
inputs, the stage's numerics version). A complete stage with the same identity is skipped.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedFile, UserError
from pipelines.plan.kinds import kind_of
from pipelines.plan.stage import ANALYSIS, BASE, COMPARISON, CONTAMINATION, Stage
from pipelines.recipe.load import result_fields
from pipelines.recipe.schema import Config
from pipelines.run_dir import ledger
from pipelines.run_dir.markers import read_marker
from pipelines.run_dir.paths import RunDir, StageDir
from pipelines.run_dir.resume_state import made_with

Fields = dict[str, Any]
Inputs = dict[str, dict[str, str]]  # path and sha256 by role
SHARED_KEYS = ("seed", "trust_remote_code")
MOST_CHANGES = 5
# How the folders begin that `stage.name` does not change.
OF_A_LOOP = (BASE, "round-", COMPARISON, ANALYSIS)


def identity_fields(kind: str, config: Config, inputs: dict[str, str]) -> dict[str, Any]:
    """Everything the result of a stage of this kind depends on, as flat `key: value` pairs.

    `inputs` maps the name of an input (base, ref, model, data source) to its content hash.
    """
    row = kind_of(kind)
    # Only whether custom code may run: the code itself is part of the content hash of its model.
    everything = result_fields(config) | {"trust_remote_code": bool(config.trust_remote_code)}
    if kind == "pretrain" and "base" in inputs:
        # An imported base is not trained: nothing else can change it.
        kept = {key: everything[key] for key in ("tokenizer", "trust_remote_code")}
    else:
        kept = {key: everything[key] for key in SHARED_KEYS + row.identity}
        if row.identity:
            kept["model.attn_implementation"] = config.model.attn_implementation
        kept |= row.depends(config, everything)
    fields = dict(_flatten(kept)) | {f"input {name}": value for name, value in inputs.items()}
    return fields | {"numerics version": row.numerics_version}


def stage_fields(stage: Stage, inputs: dict[str, str], data: dict[str, str]) -> dict[str, Any]:
    """The fields of the identity of a stage, including its inputs and data."""
    fields = identity_fields(stage.kind, stage.config, inputs)
    fields |= {f"data {key}": value for key, value in data.items()}
    if stage.kind == "evaluate":
        fields["chat"] = stage.chat
    return fields


def check_unchanged(stages: list[Stage], run: RunDir) -> None:
    """Refuse stages whose folder was made with another config, before anything starts.

    Inputs that earlier stages make are compared when the stage starts.
    """
    changed = {}
    for stage in stages:
        made = None if is_remade(stage) else made_with(run.stage(stage.name))
        if made is None:
            continue
        now = stage_fields(stage, dict.fromkeys(stage.inputs, ""), {})
        old, new = (
            {key: value for key, value in fields.items() if not key.startswith(("input ", "data "))}
            for fields in (made, now)
        )
        if old != new:
            changed[stage.name] = (old, new)
    if changed:
        raise refusal(stages, run, changed, {})


def refusal(
    stages: list[Stage], run: RunDir, changed: dict[str, tuple[Fields, Fields]], inputs: Inputs
) -> UserError:
    """The error for changed stages, of which old and new fields are given, and known inputs."""
    stage = next(stage for stage in stages if stage.name in changed)
    stage_dir = run.stage(stage.name)
    before = stage_dir.read_config()["inputs"] if stage_dir.config.is_file() else {}
    found = differing(*changed[stage.name], before, inputs)
    if more := found[MOST_CHANGES:]:
        found[MOST_CHANGES:] = [f"and {len(more)} more (see config.yaml)"]
    what = f"was made with other settings ({'; '.join(found)})"
    if stage.kind == "pretrain" and bool(before) != bool(stage.inputs):
        made = f"imported from {before['base']['path']}" if before else "trained from scratch"
        now = f"imports --base {stage.config.base}" if stage.inputs else "trains a base"
        what = f"was {made}, and this command {now}"
    single = not any(stage.name.startswith(OF_A_LOOP) for stage in stages)
    first, *others = _affected(run, [*changed])
    return UserError(
        f"{first} {what}. To {'keep' if stage_dir.is_complete() else 'resume'} it, give the old "
        f"values. Or use another --run-dir{' or stage.name=...' if single else ''} for this "
        "command. To run it again, remove it"
        f"{' and the stages that used its model or changed with it' if others else ''}: "
        f"rm -r {shlex.join([first, *others])}"
    )


def _affected(run: RunDir, names: list[str]) -> list[str]:
    """The folders of these stages and of those that used their models, directly or not."""
    begun = dict.fromkeys(entry["stage"] for entry in ledger.read(run.ledger))
    specs = {n: run.stage(n).read_config() for n in begun if run.stage(n).config.is_file()}
    for used in names:  # it grows
        for name, spec in specs.items():
            inside, given = f"{spec['run_dir']}/{used}/", spec["inputs"].values()
            if name not in names and any(one["path"].startswith(inside) for one in given):
                names.append(name)
    return [str(run.stage(name).root) for name in names]


def is_made(stage_dir: StageDir) -> bool:
    """Whether a stage is complete and, for a score stage, its scores still exist."""
    if not stage_dir.is_complete() or not stage_dir.config.is_file():
        return False
    scores = stage_dir.read_result().get("scores")
    if scores is None:
        return True
    try:
        read_marker(Path(scores) / "complete.json", {})
    except (FileNotFoundError, DamagedFile):
        return False
    return True


def is_remade(stage: Stage) -> bool:
    """Whether a stage, on which no other builds, is repeated when its inputs have changed."""
    # A later comparison in the same run directory reads more sources.
    of_comparison = stage.name == f"{COMPARISON}/{CONTAMINATION}"
    counts = of_comparison and stage.config.eval.contamination == "report"
    return kind_of(stage.kind).derived or counts


def digest(fields: dict[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def differing(old: Fields, new: Fields, before: Inputs, now: Inputs) -> list[str]:
    """`key: old -> new` for every field that differs; an input by its folder, if it is known."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        was, has = (fields.get(key, "(not set)") for fields in (old, new))
        there, here = (of.get(key.removeprefix("input "), {}).get("path") for of in (before, now))
        if was != has:
            same = ", whose files have changed" if there and there == here else ""
            found.append(f"{key}: {_short(was, there)} -> {_short(has, here)}{same}")
    return found


def _short(value: Any, folder: str | None) -> str:
    text = str(value) if folder is None else f"{folder} ({value[:6]})"
    return text if folder or len(text) <= 60 else f"{text[:57]}..."


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
