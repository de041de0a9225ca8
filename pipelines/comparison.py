"""`compare`: the arms of the paper's table from one base, one data order and one budget.

Every arm trains on the same tokens in the same order with the same settings; only the objective and
what it needs differ. Seeds vary the data order and the random numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.checkpoint import ModelRef
from pipelines.errors import UserError
from pipelines.estimate import base_parameters, stage_flops
from pipelines.evals.intervals import mean_interval
from pipelines.flywheel import Stage, mid_stages, plan_post_train, with_objective
from pipelines.run_dir import RunDir, StageDir, write_text
from pipelines.schema import Config

Objective = Literal["ntp", "kd", "miniplm", "rho1", "remit"]
# Arm -> mid_train.objective. `sft` is ReMiT with the SFT model as its reference.
ARMS: dict[str, Objective] = {
    "ntp": "ntp", "kd": "kd", "miniplm": "miniplm", "rho1": "rho1", "sft": "remit",
    "remit": "remit",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One evaluated model of a comparison.

    Attributes:
        point: `mid` (after mid-training), `post` (after post-training), or the part of the
            mid-training that was done, such as `1/4`.
        tasks: by task the accuracy, the number of questions, and one bit for each of them.
        flops, seconds: of the arm's mid-training, with the scoring it needs.
    """

    arm: str
    seed: int
    point: str
    identity: str
    average: float
    tasks: dict[str, dict[str, Any]]
    bits_per_byte: dict[str, float]
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Cell:
    """A mean over seeds, with half its 95% interval; None with one seed."""

    mean: float
    half: float | None


@dataclass(frozen=True)
class Comparison:
    """Rows: tasks and their average. Columns: arms.

    Attributes:
        cells: by row title, one cell per arm.
        gain: average less that of NTP, paired by seed; empty without the NTP arm.
    """

    point: str
    arms: list[str]
    seeds: list[int]
    cells: dict[str, list[Cell]]
    gain: list[Cell]


def plan_compare(config: Config, base: ModelRef, ref: ModelRef) -> list[Stage]:
    """The stages of all arms and seeds.

    Raises:
        UserError: an unknown arm, no seed, no task, or an SFT arm whose reference cannot be found.
    """
    wanted = config.compare
    unknown = [arm for arm in wanted.objectives if arm not in ARMS]
    if unknown or not wanted.objectives:
        named = f"no arm '{unknown[0]}'" if unknown else "no arm at all"
        raise UserError(f"compare.objectives: {named}; there are {', '.join(ARMS)}.")
    if wanted.seeds < 1:
        raise UserError(f"compare.seeds = {wanted.seeds}: at least 1.")
    if not any(task.enabled for task in config.eval.tasks.values()):
        raise UserError("compare: no task of eval.tasks is enabled, so no accuracy to compare.")
    references = {"ntp": None, "sft": None} | dict.fromkeys(ARMS.keys() - {"ntp", "sft"}, ref)
    if "sft" in wanted.objectives:
        references["sft"] = _sft_reference(config, ref)
    stages: list[Stage] = []
    for seed in range(config.seed, config.seed + wanted.seeds):
        for arm in dict.fromkeys(wanted.objectives):
            stages += _arm(config, seed, arm, base, references[arm])
    return stages


def _arm(config: Config, seed: int, arm: str, base: ModelRef, ref: ModelRef | None) -> list[Stage]:
    points = config.compare.points
    mid_config = dataclasses.replace(config.mid_train, objective=ARMS[arm], snapshots=points)
    config = dataclasses.replace(config, seed=seed, mid_train=mid_config)
    folder = f"compare/seed-{seed}/{arm}"
    decided = with_objective(config, ref is not None)
    stages = mid_stages(decided, f"{folder}/10-mid-train", base, ref)
    mid = stages[-1].name
    for number in range(1, points + 1):
        name = f"{folder}/12-eval-{number}-of-{points + 1}"
        stages.append(Stage("evaluate", name, config, {"model": f"{mid}@{number}"}))
    stages.append(Stage("evaluate", f"{folder}/15-eval", config, {"model": mid}))
    if config.compare.post_train:
        post = plan_post_train(config, mid, folder)
        if not post:
            raise UserError("compare.post_train: sft, dpo and rlvr are all switched off.")
        inputs: dict[str, str | ModelRef] = {"model": post[-1].name}
        stages += [*post, Stage("evaluate", f"{folder}/50-eval", config, inputs, chat=True)]
    return stages


def _sft_reference(config: Config, ref: ModelRef) -> ModelRef:
    """`compare.sft_ref`, or the SFT stage beside the reference's stage."""
    from pipelines.checkpoint import find_checkpoint

    if config.compare.sft_ref:
        return find_checkpoint(config.compare.sft_ref, "compare.sft_ref")
    beside = ref.folder.parent.parent / "20-sft" if ref.folder else None
    if beside is None or not StageDir(beside).is_complete():
        raise UserError(
            f"arm 'sft': no SFT stage lies beside the reference {ref.location}. Name the SFT model "
            "with compare.sft_ref=CKPT, or leave sft out of compare.objectives."
        )
    return find_checkpoint(str(beside), "compare.sft_ref")


def rows(stages: Sequence[Stage], run: RunDir, base: ModelRef) -> list[Row]:
    """The evaluated models among complete stages."""
    parameters = base_parameters(stages[0].config, base)
    made = {stage.name: stage for stage in stages if run.stage(stage.name).is_complete()}
    found = []
    for name, stage in made.items():
        if stage.kind != "evaluate":
            continue
        folder = name.rpartition("/")[0]
        arm = folder.rpartition("/")[2]
        spent = [s for s in made.values() if s.name.startswith(f"{folder}/10-mid-train")]
        result = run.stage(name).read_result()
        found.append(
            Row(
                arm=arm,
                seed=stage.config.seed,
                point=_point(name),
                identity=result["identity"],
                average=result["average"],
                tasks={
                    task: {key: score[key] for key in ("accuracy", "questions", "bits")}
                    for task, score in result["tasks"].items()
                },
                bits_per_byte={
                    domain: value["bits_per_byte"]
                    for domain, value in result["bits_per_byte"].items()
                },
                tokens=stage.config.mid_train.tokens,
                flops=sum(stage_flops(s, parameters) for s in spent),
                seconds=sum(run.stage(s.name).read_result()["seconds"] for s in spent),
            )
        )
    return found


def _point(name: str) -> str:
    """`.../12-eval-1-of-4` is `1/4`, `.../15-eval` is `mid`, `.../50-eval` is `post`."""
    last = name.rpartition("/")[2]
    if last.startswith("12-eval-"):
        return last.removeprefix("12-eval-").replace("-of-", "/")
    return "mid" if last == "15-eval" else "post"


def write_rows(run: RunDir, found: list[Row]) -> None:
    """Write `compare/rows.jsonl`: all that tables need, without weights."""
    lines = (json.dumps(dataclasses.asdict(row)) + "\n" for row in found)
    write_text(run.root / "compare" / "rows.jsonl", "".join(lines))


def tables(found: Sequence[Row]) -> list[Comparison]:
    """One table after mid-training, and one after post-training where there is that."""
    return [
        _table(point, [row for row in found if row.point == point])
        for point in ("mid", "post")
        if any(row.point == point for row in found)
    ]


def _table(point: str, found: list[Row]) -> Comparison:
    arms = list(dict.fromkeys(row.arm for row in found))
    seeds = sorted({row.seed for row in found})
    of = {(row.arm, row.seed): row for row in found}

    def column(arm: str) -> list[Row]:
        return [of[arm, seed] for seed in seeds if (arm, seed) in of]

    def over_seeds(values: list[float]) -> Cell:
        return Cell(*mean_interval(values))

    tasks = list(dict.fromkeys(task for row in found for task in row.tasks))
    cells = {
        task: [over_seeds([row.tasks[task]["accuracy"] for row in column(arm)]) for arm in arms]
        for task in tasks
    }
    cells["average"] = [over_seeds([row.average for row in column(arm)]) for arm in arms]
    gain = []
    if "ntp" in arms:
        gain = [
            over_seeds([
                row.average - of["ntp", row.seed].average
                for row in column(arm) if ("ntp", row.seed) in of
            ])
            for arm in arms
        ]  # fmt: skip
    return Comparison(point, arms, seeds, cells, gain)


@dataclass(frozen=True)
class Curve:
    """The average of one arm along the annealing.

    Attributes:
        parts: of the mid-training that were done, the last one 1.
        averages: means over seeds, with intervals.
        reaches_ntp: part after which the mean reaches NTP's final mean, between two points by a
            straight line; None if it never does, or there is no NTP arm.
    """

    arm: str
    parts: list[float]
    averages: list[Cell]
    reaches_ntp: float | None


def curves(found: Sequence[Row]) -> list[Curve]:
    """The annealing curve of each arm; none where no point before the last was evaluated."""
    along = [row for row in found if row.point != "post"]
    if all(row.point == "mid" for row in along):
        return []
    final = [row.average for row in along if row.arm == "ntp" and row.point == "mid"]
    aim = sum(final) / len(final) if final else None
    drawn = []
    for arm in dict.fromkeys(row.arm for row in along):
        by_part: dict[float, list[float]] = {}
        for row in along:
            if row.arm == arm:
                by_part.setdefault(_part(row.point), []).append(row.average)
        parts = sorted(by_part)
        cells = [Cell(*mean_interval(by_part[part])) for part in parts]
        drawn.append(Curve(arm, parts, cells, _reaches(parts, [c.mean for c in cells], aim)))
    return drawn


def _part(point: str) -> float:
    if point == "mid":
        return 1.0
    done, _, whole = point.partition("/")
    return int(done) / int(whole)


def _reaches(parts: list[float], means: list[float], aim: float | None) -> float | None:
    if aim is None:
        return None
    for i, mean in enumerate(means):
        if mean < aim:
            continue
        if i == 0:
            return parts[0]
        return parts[i - 1] + (parts[i] - parts[i - 1]) * (aim - means[i - 1]) / (
            mean - means[i - 1]
        )
    return None
