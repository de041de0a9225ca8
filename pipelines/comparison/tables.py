"""Tables of a comparison: means over seeds with intervals, differences paired by seed, curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import stdev

from pipelines.comparison.arm_rules import ARMS
from pipelines.comparison.arm_stages import POINTS
from pipelines.comparison.row import Row
from pipelines.evals.intervals import holm, mean_interval, t_test

AVERAGE = "average"
# A smaller standard deviation of the differences counts as rounding error.
NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Cell:
    """A mean over seeds, with half its 95% interval (None with one seed)."""

    mean: float
    half: float | None


@dataclass(frozen=True)
class Gain:
    """The difference between an arm and its baseline, paired by seed; None where undefined."""

    baseline: str
    mean: float
    half: float | None  # half the 95% interval by Student's t
    effect: float | None  # mean / standard deviation of the differences (Cohen's d of pairs)
    p_value: float | None  # of the two-sided paired t-test
    holm: float | None  # `p_value` adjusted by Holm's method for all arms of the table
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Line:
    """One measure of all arms."""

    cells: list[Cell | None]  # None: the arm was not measured
    gains: list[Gain | None]  # None: the arm is its own baseline, or the baseline has no row


@dataclass(frozen=True)
class Comparison:
    """The table of one point; each line has one entry per arm in `arms`."""

    point: str
    arms: list[str]
    baselines: list[str]  # of each arm
    seeds: list[int]
    own_seeds: list[list[int]]  # of each arm
    accuracy: dict[str, Line]  # by task, and the average over tasks
    bits_per_byte: dict[str, Line]  # by domain
    sampled: dict[str, Line]  # by measure of the samples, such as pass@8
    training: dict[str, Line]  # by measure of the training, such as the first loss of SFT

    @property
    def same_seeds(self) -> bool:
        """Whether all arms have the same seeds, so that their means are comparable."""
        return all(seeds == self.seeds for seeds in self.own_seeds)

    @property
    def average(self) -> Line:
        return self.accuracy[AVERAGE]


def _arms(found: Iterable[Row]) -> list[str]:
    """The arms of some rows: built-in ones in a fixed order, then variants as they occur."""
    own = dict.fromkeys(row.arm for row in found)
    return [*(arm for arm in ARMS if arm in own), *(arm for arm in own if arm not in ARMS)]


def tables(found: Sequence[Row]) -> list[Comparison]:
    """One table after mid-training, and one after each evaluated step of post-training."""
    return [
        _table(point, [row for row in found if row.point == point])
        for point in POINTS
        if any(row.point == point for row in found)
    ]


def _table(point: str, found: list[Row]) -> Comparison:
    arms = _arms(found)
    by_arm = {arm: {row.seed: row for row in found if row.arm == arm} for arm in arms}

    def lines(measures: Callable[[Row], dict[str, float]]) -> dict[str, Line]:
        titles = dict.fromkeys(title for row in found for title in measures(row))
        return {title: _line(title, measures, by_arm) for title in titles}

    return Comparison(
        point=point,
        arms=arms,
        baselines=[next(row.against for row in own.values()) for own in by_arm.values()],
        seeds=sorted({row.seed for row in found}),
        own_seeds=[sorted(own) for own in by_arm.values()],
        accuracy=lines(_accuracies),
        bits_per_byte=lines(lambda row: row.bits_per_byte),
        sampled=lines(lambda row: row.sampled),
        training=lines(lambda row: row.training),
    )


def _accuracies(row: Row) -> dict[str, float]:
    return {task: score["accuracy"] for task, score in row.tasks.items()} | {AVERAGE: row.average}


def _line(
    title: str, measures: Callable[[Row], dict[str, float]], by_arm: dict[str, dict[int, Row]]
) -> Line:
    values = {
        arm: {seed: measures(row)[title] for seed, row in own.items() if title in measures(row)}
        for arm, own in by_arm.items()
    }
    cells = [_cell(own.values()) if own else None for own in values.values()]
    gains = [_gain(arm, own, values) for arm, own in by_arm.items()]
    adjusted = holm([gain.p_value if gain else None for gain in gains])
    pairs = zip(gains, adjusted, strict=True)
    return Line(cells, [replace(gain, holm=p) if gain else None for gain, p in pairs])


def _cell(values: Iterable[float]) -> Cell:
    return Cell(*mean_interval(list(values)))


def _gain(arm: str, rows: dict[int, Row], values: dict[str, dict[int, float]]) -> Gain | None:
    baseline = next(row.against for row in rows.values())
    own, other = values[arm], values.get(baseline, {})
    deltas = {seed: own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())}
    if arm == baseline or not deltas:
        return None
    numbers = list(deltas.values())
    mean, half = mean_interval(numbers)
    spread = stdev(numbers) if len(numbers) > 1 else 0.0
    if spread < NO_SPREAD:
        return Gain(baseline, mean, half, None, None, None, deltas)
    return Gain(baseline, mean, half, mean / spread, t_test(numbers), None, deltas)


def by_seed(gain: Gain) -> str:
    """`10: +1.5, 11: -0.3`, in percentage points."""
    return ", ".join(f"{seed}: {100 * delta:+.1f}" for seed, delta in gain.by_seed.items())


def p_text(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


@dataclass(frozen=True)
class Curve:
    """The average accuracy of one arm during mid-training.

    `reaches_ntp` is the share of the mid-training after which the mean reaches NTP's final mean,
    linear between two points. It is None if the mean never does, without an NTP arm, and if NTP's
    mean did not rise from its first point.
    """

    arm: str
    seeds: list[int]
    parts: list[float]  # shares of the mid-training that were done; the last one is 1
    averages: list[Cell]  # over the seeds, one per part
    reaches_ntp: float | None
    steps_to_ntp: int | None


def curves(found: Sequence[Row]) -> list[Curve]:
    """The curve of each arm with points during mid-training, over the seeds that have every point.

    It is compared with NTP's final mean of the same seeds.
    """
    along: dict[str, dict[float, dict[int, Row]]] = {}
    for row in found:
        if row.point == "mid" or "/" in row.point:
            along.setdefault(row.arm, {}).setdefault(_part(row.point), {})[row.seed] = row
    found_curves = []
    for arm in _arms(row for row in found if "/" in row.point):
        by_part, parts = along[arm], sorted(along[arm])
        seeds = sorted(set.intersection(*(set(by_part[part]) for part in parts)))
        if not seeds:
            continue
        cells = [_cell(by_part[p][s].average for s in seeds) for p in parts]
        reached = _reaches(parts, [c.mean for c in cells], _target(along.get("ntp", {}), seeds))
        steps = max(row.steps for own in by_part.values() for row in own.values())
        steps_to_ntp = None if reached is None else round(reached * steps)
        found_curves.append(Curve(arm, seeds, parts, cells, reached, steps_to_ntp))
    return found_curves


def _target(plain: dict[float, dict[int, Row]], seeds: list[int]) -> float | None:
    """NTP's final mean over some seeds; None if a seed lacks it or the mean did not rise."""
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


def _reaches(parts: list[float], means: list[float], target: float | None) -> float | None:
    reached = [i for i, mean in enumerate(means) if target is not None and mean >= target]
    if target is None or not reached:
        return None
    if (at := reached[0]) == 0:
        return parts[0]
    before, mean = means[at - 1], means[at]
    return parts[at - 1] + (parts[at] - parts[at - 1]) * (target - before) / (mean - before)
