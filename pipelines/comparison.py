"""The tables of a comparison: means over seeds with intervals, gains paired by seed, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.arms import ARMS
from pipelines.evals.intervals import mean_interval
from pipelines.rows import Row


@dataclass(frozen=True)
class Cell:
    """A mean over seeds, with half its 95% interval; None with one seed."""

    mean: float
    half: float | None


@dataclass(frozen=True)
class Comparison:
    """Rows: tasks and their average. Columns: arms.

    Attributes:
        cells: accuracy by row title, one cell per arm.
        gain: average less that of NTP, paired by seed; empty without the NTP arm.
        bits_per_byte: by domain, one cell per arm.
    """

    point: str
    arms: list[str]
    seeds: list[int]
    cells: dict[str, list[Cell]]
    gain: list[Cell]
    bits_per_byte: dict[str, list[Cell]]


def _arms(found: Sequence[Row]) -> list[str]:
    """The arms of some rows, in one order whichever file a row came from."""
    there = {row.arm for row in found}
    return [arm for arm in ARMS if arm in there]


def tables(found: Sequence[Row]) -> list[Comparison]:
    """One table after mid-training, and one after post-training where there is that."""
    return [
        _table(point, [row for row in found if row.point == point])
        for point in ("mid", "post")
        if any(row.point == point for row in found)
    ]


def _table(point: str, found: list[Row]) -> Comparison:
    arms = _arms(found)
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
    domains = list(dict.fromkeys(domain for row in found for domain in row.bits_per_byte))
    bits = {
        domain: [over_seeds([row.bits_per_byte[domain] for row in column(arm)]) for arm in arms]
        for domain in domains
    }
    return Comparison(point, arms, seeds, cells, gain, bits)


@dataclass(frozen=True)
class Curve:
    """The average of one arm along the annealing.

    Attributes:
        parts: of the mid-training that were done, the last one 1.
        averages: means over seeds, with intervals.
        reaches_ntp: part after which the mean reaches NTP's final mean, between two points by a
            straight line; None if it never does, or there is no NTP arm.
        steps_to_ntp: the same in steps.
    """

    arm: str
    parts: list[float]
    averages: list[Cell]
    reaches_ntp: float | None
    steps_to_ntp: int | None


def curves(found: Sequence[Row]) -> list[Curve]:
    """The annealing curve of each arm; none where no point before the last was evaluated."""
    along = [row for row in found if row.point != "post"]
    if all(row.point == "mid" for row in along):
        return []
    final = [row.average for row in along if row.arm == "ntp" and row.point == "mid"]
    aim = sum(final) / len(final) if final else None
    drawn = []
    for arm in _arms(along):
        by_part: dict[float, list[float]] = {}
        for row in along:
            if row.arm == arm:
                by_part.setdefault(_part(row.point), []).append(row.average)
        parts = sorted(by_part)
        cells = [Cell(*mean_interval(by_part[part])) for part in parts]
        reached = _reaches(parts, [cell.mean for cell in cells], aim)
        steps = max(row.steps for row in along if row.arm == arm)
        drawn.append(
            Curve(arm, parts, cells, reached, None if reached is None else round(reached * steps))
        )
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
