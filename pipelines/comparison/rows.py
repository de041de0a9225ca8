"""The rows of a comparison: written, read back and put together.

Rows can leave their run directory and be read back elsewhere, so that a study goes on on another
machine. A row names the study it belongs to; rows of another one are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.comparison.arm_stages import FOLDER, place
from pipelines.comparison.row import Row, parsed
from pipelines.comparison.study import Study
from pipelines.errors import UserError
from pipelines.run_dir.paths import RunDir, write_text

# What two rows of one model have alike.
MEASURED = ("identity", "average", "tasks", "bits_per_byte", "drawn")


def rows_path(run: RunDir) -> Path:
    return run.root / FOLDER / "rows.jsonl"


def rows_there(run: RunDir) -> list[Row]:
    """The rows that comparisons left in a run directory.

    Raises:
        UserError: a line that is no row, or rows that do not belong to one study.
    """
    path = rows_path(run)
    return collected([path]) if path.is_file() else []


def check_kept(run: RunDir, study: Study) -> None:
    """Refuse a plan whose rows could not stand beside those that earlier ones left in its run.

    Raises:
        UserError: names the row, and what it differs in.
    """
    planned = {place(s): study.parts(s) for s in study.stages if s.kind == "evaluate"}
    for number, row in enumerate(rows_there(run), 1):
        if (row.arm, row.seed, row.point) in planned:
            continue  # written anew
        differing = _differing(row.shared, study.shared, both=True)
        for (arm, _, point), parts in planned.items():
            if point == row.point:
                differing |= _differing_parts(row, parts, same_arm=arm == row.arm)
        if differing:
            raise UserError(
                f"{rows_path(run)}, line {number}: {row.arm}, seed {row.seed}, {row.point} is of "
                f"another study: it differs in {', '.join(sorted(differing))}. Choose another "
                "--run-dir, or give the same checkpoints, recipe and overrides."
            )


def write_rows(run: RunDir, found: Sequence[Row]) -> Path:
    """Write `compare/rows.jsonl`; its path.

    Rows of other arms and seeds that earlier comparisons left there stay.
    """
    path = rows_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = {(row.arm, row.seed, row.point): row for row in found}
    kept = [row for row in rows_there(run) if (row.arm, row.seed, row.point) not in new]
    lines = (json.dumps(dataclasses.asdict(row)) + "\n" for row in [*kept, *found])
    write_text(path, "".join(lines))
    return path


def read_rows(paths: Sequence[str], study: Study) -> list[Row]:
    """The rows of some files that a plan asks for; others in them are passed over.

    Raises:
        UserError: a file that is not there, a line that is no row, a row of another study, or two
            rows of one model that differ; the message names file and line.
    """
    wanted = {place(stage): stage for stage in study.stages if stage.kind == "evaluate"}
    found: dict[tuple[str, int, str], Row] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"compare.rows: there is no file {path}.")
        for number, row in enumerate(parsed(path, f"compare.rows: {path}"), 1):
            where = f"compare.rows: {path}, line {number}"
            key = (row.arm, row.seed, row.point)
            if key not in wanted:
                continue
            _check_study(row, study.parts(wanted[key]), study.shared, where)
            _keep(found, row, where)
    return list(found.values())


def collected(paths: Sequence[Path]) -> list[Row]:
    """All rows of some files, each model once.

    Raises:
        UserError: a file that is not there, a line that is no row, two rows of one model that
            differ, or rows that do not belong to one study.
    """
    found: dict[tuple[str, int, str], Row] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"there is no file {path}.")
        for number, row in enumerate(parsed(path, str(path)), 1):
            where = f"{path}, line {number}"
            for other in found.values():
                _check_together(row, other, where)
            _keep(found, row, where)
    return list(found.values())


def _check_together(row: Row, other: Row, where: str) -> None:
    """Rows are of one recipe, those of an arm trained alike, and those of a point asked alike."""
    differing = _differing(row.shared, other.shared, both=True)
    if row.point == other.point:
        differing |= _differing_parts(row, other.study, same_arm=row.arm == other.arm)
    if differing:
        raise UserError(
            f"{where}: a row of another study than that of {other.arm}, seed {other.seed}, "
            f"{other.point}: it differs in {', '.join(sorted(differing))}. Draw them apart."
        )


def _differing_parts(row: Row, parts: dict[str, str], *, same_arm: bool) -> set[str]:
    """Arms differ in how they were trained, but not in what they were asked."""
    found = _differing(row.study, parts)
    return found if same_arm else found & {"evaluate"}


def _differing(own: dict[str, str], other: dict[str, str], *, both: bool = False) -> set[str]:
    """The keys of different values; `both`: of those that both have."""
    keys = own.keys() & other.keys() if both else own.keys() | other.keys()
    return {key for key in keys if own.get(key) != other.get(key)}


def places(paths: Sequence[str]) -> set[tuple[str, int, str]]:
    """Arm, seed and point of the rows of some files, of whatever study.

    Raises:
        UserError: a file that is not there, or a line that is no row.
    """
    found = set()
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"compare.rows: there is no file {path}.")
        found |= {(r.arm, r.seed, r.point) for r in parsed(path, f"compare.rows: {path}")}
    return found


def shown(
    found: Sequence[Row],
    arms: Sequence[str] | None,
    against: str | None,
    seeds: Sequence[str] | None = None,
) -> list[Row]:
    """The rows of some arms and seeds, held against another arm; None: as they are.

    Raises:
        UserError: no row is of such an arm, such a seed or of both, or the rows of one arm are held
            against different ones.
    """
    named = [("--arms", arm) for arm in arms or ()] + ([("--against", against)] if against else [])
    _check_named(named, "arm", [row.arm for row in found])
    _check_named([("--seeds", s) for s in seeds or ()], "seed", [str(row.seed) for row in found])
    if arms is not None and against is not None and against not in arms:
        raise UserError(f"--against {against}: name it in --arms too.")
    kept = [
        row
        for row in found
        if (arms is None or row.arm in arms) and (seeds is None or str(row.seed) in seeds)
    ]
    if found and not kept:
        raise UserError("no row is of an arm of --arms and a seed of --seeds both.")
    if against is not None and against not in {row.arm for row in kept}:
        raise UserError(f"--against {against}: it has no row of a seed of --seeds.")
    return _held_against(kept, against)


def _check_named(named: Sequence[tuple[str, str]], what: str, there: Sequence[str]) -> None:
    for option, name in named:
        if name not in there:
            known = ", ".join(dict.fromkeys(there))
            raise UserError(f"{option} {name}: no row is of that {what}; there are {known}.")


def _held_against(found: Sequence[Row], arm: str | None) -> list[Row]:
    if arm is None:
        named: dict[str, str] = {}
        for row in found:
            if named.setdefault(row.arm, row.against) != row.against:
                raise UserError(
                    f"rows of {row.arm} are held against {named[row.arm]} and against "
                    f"{row.against}: name one with --against."
                )
        return list(found)
    return [dataclasses.replace(row, against=arm) for row in found]


def _keep(found: dict[tuple[str, int, str], Row], row: Row, where: str) -> None:
    before = found.setdefault((row.arm, row.seed, row.point), row)
    # The time that it took, and what rows of other versions do not tell, may differ.
    if any(getattr(before, key) != getattr(row, key) for key in MEASURED):
        raise UserError(
            f"{where}: another row of {row.arm}, seed {row.seed}, {row.point} came before it, and "
            "the two differ. Keep one."
        )


def _check_study(row: Row, wanted: dict[str, str], shared: dict[str, str], where: str) -> None:
    if differing := _differing(row.study, wanted) | _differing(row.shared, shared, both=True):
        raise UserError(
            f"{where}: a row of another study; it differs in {', '.join(sorted(differing))}. Give "
            "the same checkpoints, recipe and overrides, or leave the file out."
        )
