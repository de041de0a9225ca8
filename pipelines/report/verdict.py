"""The main result: each round compared with round 0 on the same questions, and the flywheel."""

from __future__ import annotations

from dataclasses import dataclass

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
    number,
)
from pipelines.report.record import Record, StageRecord


@dataclass(frozen=True)
class Gain:
    """The accuracy of a round (`ours`) minus that of round 0 (`plain`), paired by question.

    `part` is mid or post, `half` is half the 95% interval of the difference.
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
        """The difference with its interval, in percentage points."""
        return number(self.difference, 1, self.half, 100, "+").line


def gains(record: Record) -> list[Gain]:
    """Every evaluated round compared with round 0, after mid-training and after post-training."""
    models = {column.title: column for column in record.columns}
    found = []
    for title, column in models.items():
        part, _, at = title.rpartition("-")
        plain = models.get(f"{part}-0")
        if part not in AFTER or at == "0" or plain is None:
            continue
        asked = column.asked()
        if not asked or asked != plain.asked():
            continue
        averages = column.result["average"], plain.result["average"]
        difference = paired_difference(plain.bits(), column.bits())
        questions = sum(count for count, _ in asked.values())
        found.append(Gain(int(at), part, *averages, *difference, questions))
    return sorted(found, key=lambda gain: (gain.number, gain.part))


def headline(record: Record) -> str:
    """The main result in one sentence, of the last post-trained or else mid-trained round."""
    if found := gains(record):
        last = max(found, key=lambda gain: (gain.part == "post", gain.number))
        if not last.direction:
            return (
                f"{_method(record)} round {last.number} is not significantly different from plain "
                f"training after {AFTER[last.part]}: {last.interval} points"
            )
        size = number(abs(last.difference), 1, last.half, 100).line
        return (
            f"{_method(record)} round {last.number} is {size} points {last.direction} plain "
            f"training after {AFTER[last.part]}"
        )
    tables = comparison.tables(record.rows)
    for table in reversed(tables):
        compared = dict(zip(table.arms, table.average.gains, strict=True))
        if (gain := compared.get("remit")) is not None:
            seeds = "one seed, no interval" if gain.half is None else f"{len(gain.by_seed)} seeds"
            baseline = "plain mid-training" if gain.baseline == "ntp" else gain.baseline
            points = number(gain.mean, 1, gain.half, 100, "+").line
            return f"ReMiT vs {baseline} after {AFTER[table.point]}: {points} points, {seeds}"
    if tables:
        arms = list(dict.fromkeys(arm for table in tables for arm in table.arms))
        listed = ", ".join([*arms[:8], *(["..."] if len(arms) > 8 else [])])
        return f"Comparison of {len(arms)} arm{'s' if len(arms) > 1 else ''}: {listed}"
    if record.columns and all(stage.round is None for stage in record.own):
        models = [f"{c.title} {score(record.stages[c.stage])}".strip() for c in record.columns]
        return f"Evaluated: {', '.join([*models[:8], *(['...'] if models[8:] else [])])}"
    return "No result yet: no round has been evaluated together with round 0"


def _method(record: Record) -> str:
    """The objective of the rounds, from their results."""
    used = [stage.result.get("objective", "ntp") for stage in record.own]
    return next((name for name in used if name not in ("ntp", "remit")), "ReMiT")


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
    dots = [
        Dot(
            f"round {gain.number}, {gain.part}", 100 * gain.difference, 100 * gain.half,
            gain.interval, 1 if gain.part == "post" else 6,
        )
        for gain in gains(record)
    ]  # fmt: skip
    seed = record.config.get("seed", "unknown")
    plot = DotPlot(
        "Difference from round 0", "difference in average accuracy, percentage points", dots, 0.0,
        "Bars are 95% intervals, paired by question. They cover the choice of questions but not of "
        f"the seed: this run has seed {seed}.",
    )  # fmt: skip
    drawn, command = wheel(record), "remit flywheel --iterations 1 --run-dir RUN"
    not_compared = Missing("No round was evaluated together with round 0.", command)
    not_planned = Missing("This run directory has no planned round.", command)
    blocks: list[Block] = [
        plot if dots else not_compared,
        drawn if drawn.rounds or drawn.base else not_planned,
    ]
    lead = (
        "Every round mid-trains the same base model again. From round 1 on, the post-trained model "
        "of the previous round weights the tokens."
    )
    return Section("verdict", "The flywheel", lead, blocks)


def score(stage: StageRecord | None) -> str:
    """The result or progress of a stage in two or three words."""
    result = stage.result if stage else {}
    if stage and stage.state == "running" and stage.metrics:
        last = stage.metrics[-1]
        if last.get("max_steps") is not None:
            return f"step {last['step']:.0f} of {last['max_steps']:.0f}"
    if "average" in result:
        return f"{result['average']:.1%}"
    if "heldout_pair_accuracy" in result:
        return f"pairs {result['heldout_pair_accuracy']:.0%}"
    if "reward_last_quarter" in result:
        return f"reward {result['reward_last_quarter']:.2f}"
    return f"loss {result['loss_last']:.2f}" if "loss_last" in result else ""


def wheel(record: Record) -> Wheel:
    """The stages by round, finished or not."""
    base = record.stages.get(BASE)
    numbers = sorted({s.round for s in record.stages.values() if s.round is not None})
    return Wheel(
        None if base is None else _wheel_stage(base),
        score(record.stages.get(BASE_EVAL)),
        [_round(record, number) for number in numbers],
    )


def _round(record: Record, at: int) -> WheelRound:
    own = [stage for stage in record.stages.values() if stage.round == at]
    mid = record.stages.get(f"round-{at}/10-mid-train")
    given = mid.spec.get("inputs", {}).get("ref") if mid else None
    return WheelRound(
        at,
        mid.inside(given["path"]).removesuffix("/model") if mid and given else "",
        [_wheel_stage(stage) for stage in own if kind_of(stage.kind).title],
        score(record.stages.get(f"round-{at}/15-eval")),
        score(record.stages.get(f"round-{at}/50-eval")),
    )


def _wheel_stage(stage: StageRecord) -> WheelStage:
    title = kind_of(stage.kind).title
    time = "" if stage.seconds is None else duration(stage.seconds)
    return WheelStage(stage.name, title, stage.state, time, score(stage))
