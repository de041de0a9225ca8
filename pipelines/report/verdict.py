"""The main result: each round compared with round 0 on the same questions, and the flywheel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.comparison import tables as comparison
from pipelines.comparison.arm_stages import AFTER
from pipelines.evals.intervals import paired_difference
from pipelines.plan.kinds import kind_of
from pipelines.plan.stage import BASE, BASE_EVAL
from pipelines.quantities import duration
from pipelines.report.blocks import (
    Block,
    Dot,
    DotPlot,
    Missing,
    Section,
    Wheel,
    WheelRound,
    WheelStage,
)
from pipelines.report.record import Record, StageRecord


@dataclass(frozen=True)
class Gain:
    """The accuracy of a round minus that of round 0, paired by question.

    Attributes:
        part: mid or post.
        ours, plain: average accuracy of the round and of round 0.
        half: half the 95% interval of the difference.
    """

    number: int
    part: str
    ours: float
    plain: float
    difference: float
    half: float
    questions: int

    @property
    def direction(self) -> str:
        """`above` or `below`; empty if the interval contains 0."""
        if self.difference - self.half > 0:
            return "above"
        return "below" if self.difference + self.half < 0 else ""

    @property
    def interval(self) -> str:
        return points(self.difference, self.half)


def points(difference: float, half: float | None) -> str:
    """`+5.5 +- 2.3` in percentage points."""
    return f"{100 * difference:+.1f}" + ("" if half is None else f" ± {100 * half:.1f}")


def gains(record: Record) -> list[Gain]:
    """Every evaluated round compared with round 0, after mid-training and after post-training."""
    models = {column.title: column for column in record.columns}
    found = []
    for title, column in models.items():
        part, _, number = title.rpartition("-")
        plain = models.get(f"{part}-0")
        if part not in AFTER or number == "0" or plain is None:
            continue
        asked = column.asked()
        if not asked or asked != plain.asked():
            continue
        difference, half = paired_difference(plain.bits(), column.bits())
        found.append(
            Gain(
                int(number), part, column.result["average"], plain.result["average"],
                difference, half, sum(count for count, _ in asked.values()),
            )
        )  # fmt: skip
    return sorted(found, key=lambda gain: (gain.number, gain.part))


def headline(record: Record) -> str:
    """The main result in one sentence, of the last post-trained or else mid-trained round."""
    found = gains(record)
    if found:
        last = max(found, key=lambda gain: (gain.part == "post", gain.number))
        if not last.direction:
            return (
                f"ReMiT round {last.number} is not significantly different from plain training "
                f"after {AFTER[last.part]}: {last.interval} points"
            )
        return (
            f"ReMiT round {last.number} is {100 * abs(last.difference):.1f} "
            f"± {100 * last.half:.1f} points {last.direction} plain training after "
            f"{AFTER[last.part]}"
        )
    tables = comparison.tables(record.rows)
    for table in reversed(tables):
        compared = dict(zip(table.arms, table.average.gains, strict=True))
        if (gain := compared.get("remit")) is not None:
            return _compared(gain, table)
    if tables:
        arms = list(dict.fromkeys(arm for table in tables for arm in table.arms))
        return f"Comparison of {len(arms)} arm{'s' if len(arms) > 1 else ''}: {_listed(arms)}"
    return "No result yet: no round of ReMiT has been evaluated together with round 0"


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _compared(gain: comparison.Gain, table: comparison.Comparison) -> str:
    count = len(gain.by_seed)
    seeds = "one seed, no interval" if gain.half is None else f"{count} seeds"
    baseline = "plain mid-training" if gain.baseline == "ntp" else gain.baseline
    return (
        f"ReMiT vs {baseline} after {AFTER[table.point]}: "
        f"{points(gain.mean, gain.half)} points, {seeds}"
    )


def sentences(record: Record) -> list[str]:
    """One sentence per round and part."""
    return [
        f"Round {gain.number} is {gain.direction or 'not significantly different from'} round 0 "
        f"after {AFTER[gain.part]}: {gain.ours:.1%} vs {gain.plain:.1%}, {gain.interval} points on "
        f"{gain.questions:,} paired questions."
        for gain in gains(record)
    ]


def section(record: Record) -> Section:
    """The differences with their intervals, and the drawing of the flywheel."""
    blocks: list[Block] = []
    found = gains(record)
    if found:
        blocks.append(
            DotPlot(
                "Difference from round 0",
                "difference in average accuracy, percentage points",
                [
                    Dot(
                        f"round {gain.number}, {gain.part}", 100 * gain.difference,
                        100 * gain.half, gain.interval, 1 if gain.part == "post" else 6,
                    )
                    for gain in found
                ],
                reference=0.0,
                note="Bars are 95% intervals, paired by question. They cover the choice of "
                f"questions but not of the seed: this run has seed {record.seed}.",
            )
        )  # fmt: skip
    else:
        blocks.append(
            Missing(
                "No round of ReMiT was evaluated together with round 0.",
                "remit flywheel --iterations 1",
            )
        )
    drawn = wheel(record)
    if drawn.rounds or drawn.base:
        blocks.append(drawn)
    else:
        blocks.append(
            Missing("This run directory has no planned round.", "remit flywheel --iterations 1")
        )
    lead = (
        "Every round mid-trains the same base model again. From round 1 on, the post-trained model "
        "of the previous round weights the tokens."
    )
    return Section("verdict", "The flywheel", lead, blocks)


def score(stage: StageRecord) -> str:
    """The result or progress of a stage in two or three words."""
    result = stage.result
    if not result:
        at = stage.metrics[-1:] if stage.state == "running" else []
        known = [line for line in at if line.get("max_steps") is not None]
        return "".join(f"step {line['step']:.0f} of {line['max_steps']:.0f}" for line in known)
    if "average" in result:
        return f"{result['average']:.1%}"
    if stage.kind == "dpo":
        return f"pairs {result['heldout_pair_accuracy']:.0%}"
    if stage.kind == "rlvr":
        return f"reward {result['reward_last_quarter']:.2f}"
    return f"loss {result['loss_last']:.2f}" if "loss_last" in result else ""


def wheel(record: Record) -> Wheel:
    """The stages by round, finished or not."""
    base = record.stages.get(BASE)
    numbers = sorted({s.round for s in record.stages.values() if s.round is not None})
    return Wheel(
        None if base is None else _wheel_stage(base),
        _accuracy(record, BASE_EVAL),
        [_round(record, number) for number in numbers],
    )


def _round(record: Record, number: int) -> WheelRound:
    own = {name: s for name, s in record.stages.items() if s.round == number}
    mid = own.get(f"round-{number}/10-mid-train")
    return WheelRound(
        number,
        _reference(mid) if mid else "",
        [_wheel_stage(stage) for stage in own.values() if kind_of(stage.kind).title],
        _accuracy(record, f"round-{number}/15-eval"),
        _accuracy(record, f"round-{number}/50-eval"),
    )


def _reference(mid: StageRecord) -> str:
    given: dict[str, Any] | None = mid.spec.get("inputs", {}).get("ref")
    return "" if given is None else mid.inside(given["path"]).removesuffix("/model")


def _wheel_stage(stage: StageRecord) -> WheelStage:
    title = kind_of(stage.kind).title
    time = "" if stage.seconds is None else duration(stage.seconds)
    return WheelStage(stage.name, title, stage.state, time, score(stage))


def _accuracy(record: Record, name: str) -> str:
    stage = record.stages.get(name)
    return score(stage) if stage else ""
