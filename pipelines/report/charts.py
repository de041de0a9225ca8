"""Geometry of the charts and of the flywheel drawing, in SVG user units; templates draw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.quantities import quantity
from pipelines.report.blocks import DotPlot, LineChart, Point, Wheel, WheelStage

WIDTH, HEIGHT = 420.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 84.0, 30.0, 40.0
LABEL_STEP = 13.0
ROW = 26.0
# Texts at both sides of a dot plot: width of a character, gap to the dots, longest label in
# characters.
CHARACTER, DOT_GAP, MOST_LABEL = 6.9, 14.0, 32
# With more points than this, intervals are drawn as a band, otherwise as whiskers.
MOST_WHISKERS = 12


@dataclass(frozen=True)
class Tick:
    """Attributes:
    at: position along its axis.
    """

    at: float
    text: str


@dataclass(frozen=True)
class Whisker:
    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class DrawnLine:
    """Attributes:
    path: SVG path of the line.
    band: outline of the intervals; empty without intervals.
    label_y: y of the name at the right end.
    """

    name: str
    colour: int
    path: str
    band: str
    dots: list[Whisker]
    label_y: float


@dataclass(frozen=True)
class DrawnLines:
    """Attributes:
    marks: x of the vertical lines.
    """

    lines: list[DrawnLine]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    zero: float | None
    marks: list[float]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between low and high, at most `most` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def numbers(values: Sequence[float]) -> list[str]:
    """Texts of the ticks of an axis, all with the same number of digits."""
    largest = max(map(abs, values))
    if largest >= 10_000:
        return [quantity(value) for value in values]
    if 0 < largest < 0.001:
        return [f"{value:.1e}".replace("e-0", "e-") if value else "0" for value in values]
    digits = next(n for n in range(8) if n == 7 or all(abs(round(v, n) - v) < 1e-9 for v in values))
    return [
        f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}") if value else "0" for value in values
    ]


def _axis(low: float, high: float, start: float, end: float, most: int) -> list[Tick]:
    found = ticks(low, high, most)
    places = (_scaled(value, low, high, start, end) for value in found)
    return [Tick(*tick) for tick in zip(places, numbers(found), strict=True)]


def _scaled(value: float, low: float, high: float, start: float, end: float) -> float:
    return round(start + (end - start) * (value - low) / (high - low), 1)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a margin; never empty."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin


def lines(chart: LineChart) -> DrawnLines:
    """The positions of the lines, bands, whiskers, ticks and names of a chart."""
    every = [point for series in chart.series for point in series.points]
    x_low, x_high = min(p.x for p in every), max(p.x for p in every)
    if chart.x_labels:
        x_low, x_high = -0.3, len(chart.x_labels) - 0.7
    elif x_low == x_high:
        x_high = x_low + 1
    lowest, highest = chart.limits or (-math.inf, math.inf)
    y_low, y_high = _range([y for p in every for y in (p.y - (p.half or 0), p.y + (p.half or 0))])
    y_low, y_high = max(y_low, lowest), min(y_high, highest)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(point: Point, offset: float = 0.0) -> tuple[float, float]:
        return (
            _scaled(point.x, x_low, x_high, LEFT, right),
            _scaled(min(max(point.y + offset, lowest), highest), y_low, y_high, bottom, TOP),
        )

    drawn = []
    ends = [place(series.points[-1])[1] for series in chart.series]
    for series, label_y in zip(chart.series, spread(ends, TOP + 4, bottom), strict=True):
        whiskers = len(series.points) <= MOST_WHISKERS
        halves = [p for p in series.points if p.half is not None]
        upper = [place(p, p.half or 0) for p in halves]
        lower = [place(p, -(p.half or 0)) for p in reversed(halves)]
        drawn.append(
            DrawnLine(
                series.name, series.colour, _path([place(p) for p in series.points]),
                "" if whiskers or len(halves) < 2 else _path(upper + lower) + "Z",
                [
                    Whisker(
                        *place(p), place(p, -(p.half or 0))[1], place(p, p.half or 0)[1],
                        f"{series.name}: {p.y:.4g}" + (f" ± {p.half:.2g}" if p.half else ""),
                    )
                    for p in series.points
                ] if whiskers else [],
                label_y,
            )
        )  # fmt: skip
    x_ticks = _axis(x_low, x_high, LEFT, right, 5)
    if chart.x_labels:
        x_ticks = _named(chart, x_low, x_high)
    zero = _scaled(0, y_low, y_high, bottom, TOP) if y_low < 0 < y_high else None
    marks = [_scaled(i, x_low, x_high, LEFT, right) for i in chart.marks]
    return DrawnLines(drawn, x_ticks, _axis(y_low, y_high, bottom, TOP, 4), zero, marks)


def _named(chart: LineChart, low: float, high: float) -> list[Tick]:
    """Names on the x axis: those of the marks first, then from the left as many as fit."""
    names = chart.x_labels
    found: dict[int, Tick] = {}
    for i in [*chart.marks, *range(len(names))]:
        tick = Tick(_scaled(i, low, high, LEFT, WIDTH - RIGHT), names[i])
        if all(_apart(tick, other) for other in found.values()):
            found[i] = tick
    return [found[i] for i in sorted(found)]


def _apart(tick: Tick, other: Tick) -> bool:
    """Whether two names, each centred at its tick, do not touch."""
    return abs(tick.at - other.at) > CHARACTER * (len(tick.text) + len(other.text) + 1) / 2


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in places)


def spread(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """The heights, moved so that names do not overlap."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    floor = top
    for i in order:
        placed[i] = floor = max(heights[i], floor)
        floor += LABEL_STEP
    ceiling = bottom
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - LABEL_STEP
    return placed


@dataclass(frozen=True)
class DrawnDot:
    label: str
    text: str
    colour: int
    x: float
    low: float
    high: float
    y: float
    after: float | None


@dataclass(frozen=True)
class DrawnDots:
    """Attributes:
    right: x where the plot ends and the texts begin.
    """

    left: float
    right: float
    height: float
    dots: list[DrawnDot]
    x_ticks: list[Tick]
    reference: float | None


def dots(plot: DotPlot) -> DrawnDots:
    """The positions of the rows of a dot plot."""
    values = [v for d in plot.dots for v in (d.value - (d.half or 0), d.value + (d.half or 0))]
    values += [dot.after for dot in plot.dots if dot.after is not None]
    if plot.reference is not None:
        values.append(plot.reference)
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05
    low, high = low - margin, high + margin
    left = DOT_GAP + CHARACTER * min(MOST_LABEL, max(len(dot.label) for dot in plot.dots))
    right = WIDTH - DOT_GAP - CHARACTER * max(len(dot.text) for dot in plot.dots)

    def place(value: float) -> float:
        return _scaled(value, low, high, left, right)

    drawn = [
        DrawnDot(
            dot.label, dot.text, dot.colour, place(dot.value),
            place(dot.value - (dot.half or 0)), place(dot.value + (dot.half or 0)),
            18 + ROW * row, None if dot.after is None else place(dot.after),
        )
        for row, dot in enumerate(plot.dots)
    ]  # fmt: skip
    return DrawnDots(
        left, right, 18 + ROW * len(drawn) + 26, drawn, _axis(low, high, left, right, 4),
        None if plot.reference is None else place(plot.reference),
    )  # fmt: skip


def height(block: LineChart | DotPlot) -> float:
    """The height of the drawing, without its title."""
    return HEIGHT if isinstance(block, LineChart) else dots(block).height


BOX_WIDTH, BOX_HEIGHT = 92.0, 52.0
BASE_WIDTH, FIRST, COLUMN, ROUND_HEIGHT = 84.0, 132.0, 124.0, 132.0
WHEEL_TOP = 34.0


@dataclass(frozen=True)
class DrawnBox:
    x: float
    y: float
    width: float
    stage: WheelStage


@dataclass(frozen=True)
class DrawnRound:
    """Attributes:
    y: middle of its boxes.
    from_reference: path from the previous round's end to this mid-training; empty in the first.
    """

    title: str
    y: float
    boxes: list[DrawnBox]
    mid: str
    post: str
    from_base: str
    from_reference: str


@dataclass(frozen=True)
class DrawnWheel:
    width: float
    height: float
    base: DrawnBox | None
    base_score: str
    rounds: list[DrawnRound]


def wheel(wheel: Wheel) -> DrawnWheel:
    """Base on the left, one row per round, and an arrow from each round's end to the next start."""
    most = max((len(r.stages) for r in wheel.rounds), default=0)
    width = max(FIRST + COLUMN * most, BASE_WIDTH + 40)
    first_y = WHEEL_TOP + BOX_HEIGHT / 2
    base = None if wheel.base is None else DrawnBox(0, WHEEL_TOP, BASE_WIDTH, wheel.base)
    rounds = []
    last_x = 0.0
    for row, each in enumerate(wheel.rounds):
        y = first_y + ROUND_HEIGHT * row
        boxes = [
            DrawnBox(FIRST + COLUMN * i, y - BOX_HEIGHT / 2, BOX_WIDTH, stage)
            for i, stage in enumerate(each.stages)
        ]
        title = f"Round {each.number}" + ("" if each.number else ", plain")
        rounds.append(
            DrawnRound(
                title, y, boxes, each.mid, each.post, _from_base(row, y, first_y),
                _from_reference(last_x, y) if row else "",
            )
        )  # fmt: skip
        last_x = boxes[-1].x + BOX_WIDTH / 2 if boxes else last_x
    height = WHEEL_TOP + ROUND_HEIGHT * max(1, len(rounds)) - 54
    return DrawnWheel(width, height, base, wheel.base_score, rounds)


def _from_base(row: int, y: float, first_y: float) -> str:
    if not row:
        return f"M{BASE_WIDTH:g},{y:g}H{FIRST - 7:g}"
    x = BASE_WIDTH + 18
    return f"M{x:g},{first_y:g}V{y:g}H{FIRST - 7:g}"


def _from_reference(last_x: float, y: float) -> str:
    """From below the last box of the row above, along the gap, down to this mid-training."""
    start, gap, end = y - ROUND_HEIGHT + BOX_HEIGHT / 2, y - BOX_HEIGHT / 2 - 38, FIRST + 24
    return (
        f"M{last_x:g},{start + 24:g}V{gap - 8:g}Q{last_x:g},{gap:g} {last_x - 8:g},{gap:g}"
        f"H{end + 8:g}Q{end:g},{gap:g} {end:g},{gap + 8:g}V{y - BOX_HEIGHT / 2 - 7:g}"
    )
