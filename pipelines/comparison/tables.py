"""The tables of a comparison: means over seeds with intervals, gains paired by seed, curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import stdev

from pipelines.comparison.arm_rules import ARMS
from pipelines.comparison.arm_stages import POINTS
from pipelines.comparison.row import Row
from pipelines.evals.intervals import holm, mean_interval, t_test

AVERAGE = "average"
# Differences that vary less than this vary by rounding alone.
NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Cell:
    """A mean over seeds, with half its 95% interval; None with one seed."""

    mean: float
    half: float | None


@dataclass(frozen=True)
class Gain:
    """What an arm has more than the arm it is held against, paired by seed.

    Attributes:
        half: half the 95% interval by Student's t; None with one seed.
        effect: mean over standard deviation of the differences (Cohen's d of pairs); None where
            that is not defined.
        p: two-sided, of the t-test; `holm` is the same adjusted for all arms of the table.
    """

    against: str
    mean: float
    half: float | None
    effect: float | None
    p: float | None
    holm: float | None
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Line:
    """One measure of all arms.

    Attributes:
        cells: None where an arm has not been measured.
        gains: None for an arm that is held against itself, or against one that is not there.
    """

    cells: list[Cell | None]
    gains: list[Gain | None]


@dataclass(frozen=True)
class Comparison:
    """Lines of one entry for each of `arms`.

    Attributes:
        baselines: the arm that each is held against.
        own_seeds: of each arm, those that it has a row of.
        accuracy: by task, and the average of the tasks.
        bits_per_byte: by domain.
        drawn: by measure of drawn answers, such as pass@8.
        training: by measure of the arms' training, such as the first loss of SFT.
    """

    point: str
    arms: list[str]
    baselines: list[str]
    seeds: list[int]
    own_seeds: list[list[int]]
    accuracy: dict[str, Line]
    bits_per_byte: dict[str, Line]
    drawn: dict[str, Line]
    training: dict[str, Line]

    @property
    def same_seeds(self) -> bool:
        """Whether the levels of the arms compare: all are of the same seeds."""
        return all(seeds == self.seeds for seeds in self.own_seeds)

    @property
    def average(self) -> Line:
        return self.accuracy[AVERAGE]


def _arms(found: Iterable[Row]) -> list[str]:
    """The arms of some rows: those of the table in one order, then variants as they come."""
    there = dict.fromkeys(row.arm for row in found)
    return [*(arm for arm in ARMS if arm in there), *(arm for arm in there if arm not in ARMS)]


def tables(found: Sequence[Row]) -> list[Comparison]:
    """One table after mid-training, and one after each step of post-training that was evaluated."""
    return [
        _table(point, [row for row in found if row.point == point])
        for point in POINTS
        if any(row.point == point for row in found)
    ]


def _table(point: str, found: list[Row]) -> Comparison:
    arms = _arms(found)
    by_arm = {arm: {row.seed: row for row in found if row.arm == arm} for arm in arms}

    def lines(measures: Callable[[Row], dict[str, float]]) -> dict[str, Line]:
        measured = {
            arm: {seed: measures(row) for seed, row in own.items()} for arm, own in by_arm.items()
        }
        titles = dict.fromkeys(title for row in found for title in measures(row))
        return {title: _line(title, by_arm, measured) for title in titles}

    return Comparison(
        point=point,
        arms=arms,
        baselines=[next(row.against for row in own.values()) for own in by_arm.values()],
        seeds=sorted({row.seed for row in found}),
        own_seeds=[sorted(own) for own in by_arm.values()],
        accuracy=lines(_accuracies),
        bits_per_byte=lines(lambda row: row.bits_per_byte),
        drawn=lines(lambda row: row.drawn),
        training=lines(lambda row: row.training),
    )


def _accuracies(row: Row) -> dict[str, float]:
    return {task: score["accuracy"] for task, score in row.tasks.items()} | {AVERAGE: row.average}


def _line(
    title: str,
    by_arm: dict[str, dict[int, Row]],
    measured: dict[str, dict[int, dict[str, float]]],
) -> Line:
    values = {
        arm: {seed: found[title] for seed, found in own.items() if title in found}
        for arm, own in measured.items()
    }
    return Line(
        [_over_seeds(own) for own in values.values()],
        _adjusted([_gain(arm, own, values) for arm, own in by_arm.items()]),
    )


def _over_seeds(values: dict[int, float]) -> Cell | None:
    return Cell(*mean_interval(list(values.values()))) if values else None


def _gain(arm: str, rows: dict[int, Row], values: dict[str, dict[int, float]]) -> Gain | None:
    against = next(row.against for row in rows.values())
    other = values.get(against, {})
    deltas = {s: values[arm][s] - other[s] for s in sorted(values[arm].keys() & other.keys())}
    if arm == against or not deltas:
        return None
    numbers = list(deltas.values())
    spread = stdev(numbers) if len(numbers) > 1 else 0.0
    mean, half = mean_interval(numbers)
    if spread < NO_SPREAD:
        return Gain(against, mean, half, None, None, None, deltas)
    return Gain(against, mean, half, mean / spread, t_test(numbers), None, deltas)


def by_seed(gain: Gain) -> str:
    """`10: +1.5, 11: -0.3`, in percentage points."""
    return ", ".join(f"{seed}: {100 * delta:+.1f}" for seed, delta in gain.by_seed.items())


def chance(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _adjusted(gains: list[Gain | None]) -> list[Gain | None]:
    chances = holm([gain.p if gain else None for gain in gains])
    return [
        replace(gain, holm=chance) if gain else None
        for gain, chance in zip(gains, chances, strict=True)
    ]


@dataclass(frozen=True)
class Curve:
    """The average of one arm along the annealing.

    Attributes:
        seeds: that the averages are over.
        parts: of the mid-training that were done, the last one 1.
        averages: means over seeds, with intervals.
        reaches_ntp: part after which the mean reaches NTP's final mean, between two points by a
            straight line; None if it never does, or there is nothing to reach: no NTP arm, or one
            that was no lower at its first point.
        steps_to_ntp: the same in steps.
    """

    arm: str
    seeds: list[int]
    parts: list[float]
    averages: list[Cell]
    reaches_ntp: float | None
    steps_to_ntp: int | None


def curves(found: Sequence[Row]) -> list[Curve]:
    """The annealing curve of each arm with points before the last.

    Over the seeds that have every point of it; what it is to reach is NTP's end of those seeds.
    """
    along: dict[str, dict[float, dict[int, Row]]] = {}
    for row in found:
        if row.point == "mid" or "/" in row.point:
            along.setdefault(row.arm, {}).setdefault(_part(row.point), {})[row.seed] = row
    drawn = []
    for arm in _arms(row for row in found if "/" in row.point):
        by_part = along[arm]
        parts = sorted(by_part)
        seeds = sorted(set.intersection(*(set(by_part[part]) for part in parts)))
        if not seeds:
            continue
        cells = [Cell(*mean_interval([by_part[p][s].average for s in seeds])) for p in parts]
        reached = _reaches(parts, [c.mean for c in cells], _aim(along.get("ntp", {}), seeds))
        steps = max(row.steps for own in by_part.values() for row in own.values())
        drawn.append(
            Curve(
                arm, seeds, parts, cells, reached,
                None if reached is None else round(reached * steps),
            )
        )  # fmt: skip
    return drawn


def _aim(plain: dict[float, dict[int, Row]], seeds: list[int]) -> float | None:
    """NTP's mean at its end over some seeds; None where it is not there or never rose to it."""
    whole = [rows for _, rows in sorted(plain.items()) if all(seed in rows for seed in seeds)]
    means = [sum(rows[seed].average for seed in seeds) / len(seeds) for rows in whole]
    if not means or whole[-1] is not plain.get(1.0) or (len(means) > 1 and means[0] >= means[-1]):
        return None
    return means[-1] or None


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
