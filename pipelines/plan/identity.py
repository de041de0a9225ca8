"""The identity of a stage: everything that its result depends on, and nothing else.

identity = hash of (the config fields that can change the result, the content hashes of the
inputs, the stage's numerics version). A complete stage with the same identity is skipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedFile, UserError
from pipelines.plan.kinds import kind_of
from pipelines.plan.stage import COMPARISON, CONTAMINATION, Stage
from pipelines.recipe.load import result_fields
from pipelines.recipe.schema import Config
from pipelines.run_dir.markers import read_marker
from pipelines.run_dir.paths import RunDir, StageDir
from pipelines.run_dir.resume_state import made_with

SHARED_KEYS = ("seed", "trust_remote_code")


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
    for stage in stages:
        stage_dir = run.stage(stage.name)
        made = None if is_remade(stage) else made_with(stage_dir)
        if made is None:
            continue
        now = stage_fields(stage, dict.fromkeys(stage.inputs, ""), {})
        old, new = (
            {key: value for key, value in fields.items() if not key.startswith(("input ", "data "))}
            for fields in (made, now)
        )
        if old != new:
            raise refusal(stage_dir, old, new)


def refusal(stage_dir: StageDir, old: dict[str, Any], new: dict[str, Any]) -> UserError:
    changes = "; ".join(differing(old, new))
    return UserError(
        f"{stage_dir.root} was made with other settings ({changes}). Choose one: give the old "
        "values to resume it; use another --run-dir; set stage.name=... for a single-stage "
        "command; or remove that folder to run the stage again."
    )


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


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every field that differs, in a stable order."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = (fields.get(key, "(not set)") for fields in (old, new))
        if before != after:
            found.append(f"{key}: {_short(before)} -> {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
