"""Writing, reading and combining the rows of a comparison.

A study can continue on another machine with its rows. Rows of another study are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.comparison.arm_stages import FOLDER, Place, place
from pipelines.comparison.row import Row, parsed
from pipelines.comparison.study import Study
from pipelines.errors import UserError
from pipelines.run_dir.paths import RunDir, write_text

# Fields that two rows of the same model must agree in.
MEASURED = ("identity", "average", "tasks", "bits_per_byte", "sampled")


def rows_path(run: RunDir) -> Path:
    return run.root / FOLDER / "rows.jsonl"


def existing_rows(run: RunDir) -> list[Row]:
    """The rows that earlier comparisons wrote to a run directory; raises as `collected`."""
    path = rows_path(run)
    return collected([path]) if path.is_file() else []


def check_kept(run: RunDir, study: Study) -> None:
    """Refuse, by a `UserError`, a plan whose rows do not fit to those of its run directory."""
    planned = {place(s): study.parts(s) for s in study.stages if s.kind == "evaluate"}
    for number, row in enumerate(existing_rows(run), 1):
        if row.place in planned:
            continue  # it will be overwritten
        differing = _differing(row.shared, study.shared, both=True)
        for (arm, _, point), parts in planned.items():
            if point == row.point:
                differing |= _differing_parts(row, parts, same_arm=arm == row.arm)
        if differing:
            raise UserError(
                f"{rows_path(run)}, line {number}: {row.arm}, seed {row.seed}, {row.point} is of "
                f"another study: it differs in {', '.join(sorted(differing))}. Choose another "
                "--run-dir, or use the same checkpoints, recipe and overrides."
            )


def write_rows(run: RunDir, found: Sequence[Row]) -> Path:
    """Write `compare/rows.jsonl`, where earlier rows of other arms and seeds stay; its path."""
    path = rows_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = {row.place for row in found}
    kept = [row for row in existing_rows(run) if row.place not in new]
    lines = (json.dumps(dataclasses.asdict(row)) + "\n" for row in [*kept, *found])
    write_text(path, "".join(lines))
    return path


def read_rows(paths: Sequence[str], study: Study) -> list[Row]:
    """The rows of some files that a plan needs; other rows are ignored.

    Raises:
        UserError: a file does not exist, a line is not a valid row, a row belongs to another study,
            or two rows of one model differ; the message names file and line.
    """
    wanted = {place(stage): stage for stage in study.stages if stage.kind == "evaluate"}
    found: dict[Place, Row] = {}
    for where, row in _numbered(paths, "compare.rows: "):
        if row.place not in wanted:
            continue
        differing = _differing(row.shared, study.shared, both=True)
        differing |= _differing(row.study, study.parts(wanted[row.place]))
        if differing:
            raise UserError(
                f"{where}: a row of another study; it differs in {', '.join(sorted(differing))}. "
                "Use the same checkpoints, recipe and overrides, or leave the file out."
            )
        _keep(found, row, where)
    return list(found.values())


def _numbered(paths: Sequence[str | Path], option: str = "") -> Iterator[tuple[str, Row]]:
    """The rows of some files, each with its file and line for error messages."""
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"{option}{path} does not exist or is not a file.")
        for number, row in enumerate(parsed(path, f"{option}{path}"), 1):
            yield f"{option}{path}, line {number}", row


def collected(paths: Sequence[Path]) -> list[Row]:
    """All rows of some files, each model once.

    Raises:
        UserError: a file does not exist, a line is not a valid row, two rows of one model differ,
            or the rows belong to different studies.
    """
    found: dict[Place, Row] = {}
    for where, row in _numbered(paths):
        for other in found.values():
            _check_together(row, other, where)
        _keep(found, row, where)
    return list(found.values())


def _check_together(row: Row, other: Row, where: str) -> None:
    """Check that rows share the recipe, those of an arm the training, of a point the evaluation."""
    differing = _differing(row.shared, other.shared, both=True)
    if row.point == other.point:
        differing |= _differing_parts(row, other.study, same_arm=row.arm == other.arm)
    if differing:
        raise UserError(
            f"{where}: a row of another study than that of {other.arm}, seed {other.seed}, "
            f"{other.point}: it differs in {', '.join(sorted(differing))}. Report them separately."
        )


def _differing_parts(row: Row, parts: dict[str, str], *, same_arm: bool) -> set[str]:
    """The keys that differ; arms may differ in their training, but not in their evaluation."""
    found = _differing(row.study, parts)
    return found if same_arm else found & {"evaluate"}


def _differing(own: dict[str, str], other: dict[str, str], *, both: bool = False) -> set[str]:
    """The keys whose values differ; with `both`, only among keys that both have."""
    keys = own.keys() & other.keys() if both else own.keys() | other.keys()
    return {key for key in keys if own.get(key) != other.get(key)}


def places(paths: Sequence[str]) -> set[Place]:
    """Arm, seed and point of the rows of some files, of any study; raises as `read_rows`."""
    return {row.place for _, row in _numbered(paths, "compare.rows: ")}


def shown(
    found: Sequence[Row], arms: Sequence[str] | None, against: str | None,
    seeds: Sequence[str] | None = None,
) -> list[Row]:  # fmt: skip
    """The rows of some arms and seeds, with baseline `against`; None leaves each as it is.

    Raises:
        UserError: no row has such an arm, such a seed or both, or the rows of one arm have
            different baselines.
    """
    named = [("--arms", arm) for arm in arms or ()] + ([("--against", against)] if against else [])
    _check_named(named, "arm", [row.arm for row in found])
    _check_named([("--seeds", s) for s in seeds or ()], "seed", [str(row.seed) for row in found])
    if arms is not None and against is not None and against not in arms:
        raise UserError(f"--against {against}: add this arm to --arms.")
    kept = [row for row in found if arms is None or row.arm in arms]
    kept = [row for row in kept if seeds is None or str(row.seed) in seeds]
    if found and not kept:
        raise UserError("no row matches both --arms and --seeds.")
    if against is not None and against not in {row.arm for row in kept}:
        raise UserError(f"--against {against}: this arm has no row with a seed of --seeds.")
    if against is not None:
        return [dataclasses.replace(row, against=against) for row in kept]
    baselines: dict[str, str] = {}
    for row in kept:
        if baselines.setdefault(row.arm, row.against) != row.against:
            raise UserError(
                f"rows of {row.arm} have different baselines, {baselines[row.arm]} and "
                f"{row.against}: choose one with --against."
            )
    return kept


def _check_named(named: Sequence[tuple[str, str]], what: str, existing: Sequence[str]) -> None:
    for option, name in named:
        if name not in existing:
            known = ", ".join(dict.fromkeys(existing))
            raise UserError(f"{option} {name}: no row has that {what}. Choose from {known}.")


def _keep(found: dict[Place, Row], row: Row, where: str) -> None:
    before = found.setdefault(row.place, row)
    # Its time, and fields that rows of other versions lack, may differ.
    if any(getattr(before, key) != getattr(row, key) for key in MEASURED):
        raise UserError(
            f"{where}: this row differs from an earlier row of {row.arm}, seed {row.seed}, "
            f"{row.point}. Keep one of the two."
        )
