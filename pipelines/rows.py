"""The rows of a comparison: made of its stages, written, read back and put together.

Rows can leave their run directory and be read back elsewhere, so that a study goes on on another
machine. A row names the study it belongs to; rows of another one are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.arm_rules import variant_of
from pipelines.arm_stages import FOLDER, behind, place
from pipelines.checkpoint import ModelRef, content_hash
from pipelines.errors import UserError
from pipelines.estimate import stage_flops
from pipelines.flywheel import Stage, sources_of
from pipelines.identity import digest, identity_fields
from pipelines.row import Row, parsed
from pipelines.run_dir import RunDir, write_text

# What rows of one arm may differ in.
_OF_AN_ARM = ("seed", "mid_train.snapshots")


@dataclass
class Study:
    """What each evaluation of a plan depends on, apart from its seed.

    Args:
        stages: the whole plan of a comparison.
        data_sha256: of each source, by config key.
    """

    stages: Sequence[Stage]
    data_sha256: dict[str, str]
    _hashes: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name = {stage.name: stage for stage in self.stages}

    def parts(self, evaluation: Stage) -> dict[str, str]:
        """By role the models that an arm starts from, by kind the settings of its stages."""
        way = [evaluation, *behind(evaluation, self.by_name, whole=False)]
        parts = {stage.kind: self._settings(stage) for stage in way if stage.kind != "score"}
        mid = next(stage for stage in way if stage.kind == "mid_train")
        seed = evaluation.config.seed
        return parts | {role: self._model(given, seed) for role, given in mid.inputs.items()}

    def _settings(self, stage: Stage) -> str:
        fields = identity_fields(stage.kind, stage.config, {}) | {"chat": stage.chat}
        kept = {key: value for key, value in fields.items() if key not in _OF_AN_ARM}
        data = {f"data {key}": self.data_sha256[key] for key in sources_of(stage)}
        return digest(kept | data)[:16]

    def _model(self, given: str | ModelRef, seed: int) -> str:
        """Content of a model outside; what decides one that the plan of a seed makes."""
        if isinstance(given, str):
            name, _, number = given.partition("@")
            stage = self.by_name[name]
            decided = {role: self._model(model, seed) for role, model in stage.inputs.items()}
            decided["settings"] = self._settings(stage)
            if number:
                decided["kept model"] = f"{number} of {stage.config.mid_train.snapshots}"
            if stage.config.seed != seed:
                decided["seed after its own"] = str(stage.config.seed - seed)
            return digest(decided)[:16]
        assert given.folder is not None
        if given.folder not in self._hashes:
            self._hashes[given.folder] = content_hash(given.folder)[:16]
        return self._hashes[given.folder]


def result_rows(stages: Sequence[Stage], run: RunDir, study: Study, parameters: int) -> list[Row]:
    """The evaluated models among complete stages of a comparison, of a base of `parameters`."""
    made = {stage.name: stage for stage in stages if run.stage(stage.name).is_complete()}
    results = {name: run.stage(name).read_result() for name in made}
    found = []
    for name, stage in made.items():
        if stage.kind != "evaluate":
            continue
        arm, seed, point = place(stage)
        spent = {s.name: s for s in behind(stage, made, whole=False)}
        mid = next(s for s in spent.values() if s.kind == "mid_train")
        result = results[name]
        found.append(
            Row(
                arm=arm,
                seed=seed,
                point=point,
                against=variant_of(stage.config, arm).against,
                identity=result["identity"],
                study=study.parts(stage),
                average=result["average"],
                tasks={
                    task: {key: score[key] for key in ("accuracy", "questions", "bits")}
                    for task, score in result["tasks"].items()
                },
                bits_per_byte={
                    domain: value["bits_per_byte"]
                    for domain, value in result["bits_per_byte"].items()
                },
                drawn=_mean_drawn(result["tasks"]),
                training=training_measures({s.kind: results[s.name] for s in spent.values()}),
                tokens=results[mid.name]["tokens"],
                steps=results[mid.name]["steps"],
                passes=max(s["epochs"] for s in results[mid.name]["mixture"].values()),
                flops=sum(stage_flops(s, parameters) for s in spent.values()),
                seconds=sum(results[s]["seconds"] for s in spent),
            )
        )
    return found


def training_measures(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the training of an arm left to compare, from its results by kind of stage.

    The first and the last loss of SFT, in nats: all arms have the same one there, other than in
    mid-training. Of an arm that chooses sequences, the share of each domain in its tokens.
    """
    sft = results.get("sft", {})
    losses = {f"SFT loss, {end}": sft[f"loss_{end}"] for end in ("first", "last") if sft}
    domains = results["mid_train"].get("selection", {}).get("domains", {})
    return losses | {f"chosen {domain}": share["kept"] for domain, share in domains.items()}


def _mean_drawn(tasks: dict[str, dict[str, Any]]) -> dict[str, float]:
    """By measure, the mean over the tasks that all have it."""
    sampled = [task["sampled"] for task in tasks.values() if "sampled" in task]
    names = dict.fromkeys(name for scores in sampled for name in scores)
    return {
        name: sum(scores[name]["mean"] for scores in sampled) / len(sampled)
        for name in names
        if all(name in scores for scores in sampled)
    }


def rows_path(run: RunDir) -> Path:
    return run.root / FOLDER / "rows.jsonl"


def rows_there(run: RunDir) -> list[Row]:
    """The rows that comparisons left in a run directory.

    Raises:
        UserError: a line that is no row.
    """
    path = rows_path(run)
    return parsed(path, str(path)) if path.is_file() else []


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
            _check_study(row, study.parts(wanted[key]), where)
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
    """Rows of one arm are of one study, and rows of one point answered the same questions."""
    if row.point != other.point:
        return
    same_arm = row.arm == other.arm
    parts = row.study.keys() | other.study.keys() if same_arm else {"evaluate"}
    differing = sorted(part for part in parts if row.study.get(part) != other.study.get(part))
    if differing:
        raise UserError(
            f"{where}: a row of another study than that of {other.arm}, seed {other.seed}, "
            f"{other.point}: it differs in {', '.join(differing)}. Draw them apart."
        )


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
    if found.setdefault((row.arm, row.seed, row.point), row).identity != row.identity:
        raise UserError(
            f"{where}: another row of {row.arm}, seed {row.seed}, {row.point} came before it, and "
            "the two differ. Keep one."
        )


def _check_study(row: Row, wanted: dict[str, str], where: str) -> None:
    differing = [
        part
        for part in sorted(wanted.keys() | row.study.keys())
        if wanted.get(part) != row.study.get(part)
    ]
    if differing:
        raise UserError(
            f"{where}: a row of another study; it differs in {', '.join(differing)}. Give the same "
            "checkpoints, recipe and overrides, or leave the file out."
        )
