"""Geometry of the charts and of the flywheel drawing, in SVG user units; templates draw it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipelines.quantities import quantity
from pipelines.report.blocks import (
    Dot,
    DotPlot,
    LineChart,
    Point,
    Series,
    Wheel,
    WheelRound,
    WheelStage,
)

WIDTH, HEIGHT = 420.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 84.0, 30.0, 40.0
LABEL_STEP = 13.0
ROW = 26.0
# Texts at both sides of a dot plot: width of a character, gap to the dots, longest label in
# characters.
CHARACTER, DOT_GAP, MOST_LABEL = 6.9, 14.0, 32
# With more points than this, intervals are drawn as a band, otherwise as whiskers.
MOST_WHISKERS = 12
# A map from a value to its position along an axis.
Scale = Callable[[float], float]


class Tick(NamedTuple):
    """`at` is the position along its axis."""

    at: float
    text: str


class Whisker(NamedTuple):
    x: float
    y: float
    low: float
    high: float
    text: str


class DrawnLine(NamedTuple):
    """SVG paths of a line and of the band of its intervals, and the y of its name at the right."""

    name: str
    colour: int
    path: str
    band: str
    dots: list[Whisker]
    label_y: float


class DrawnLines(NamedTuple):
    """`marks` are the x of the vertical lines, `zero` is the y of the horizontal one."""

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


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """The linear map from low..high to start..end."""
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _axis(low: float, high: float, place: Scale, most: int) -> list[Tick]:
    found = ticks(low, high, most)
    return [Tick(*tick) for tick in zip(map(place, found), numbers(found), strict=True)]


def lines(chart: LineChart) -> DrawnLines:
    """The positions of the lines, bands, whiskers, ticks and names of a chart."""
    every = [point for series in chart.series for point in series.points]
    x_low, x_high = min(p.x for p in every), max(p.x for p in every)
    if chart.x_labels:
        x_low, x_high = -0.3, len(chart.x_labels) - 0.7
    elif x_low == x_high:
        x_high = x_low + 1
    ends = [p.y + sign * (p.half or 0) for p in every for sign in (-1, 1)]
    y_low, y_high = min(ends), max(ends)
    margin = 0.06 * (y_high - y_low) or 0.05 * abs(y_high) or 1.0
    lowest, highest = chart.limits or (-math.inf, math.inf)
    y_low, y_high = max(y_low - margin if y_low else y_low, lowest), min(y_high + margin, highest)
    bottom = HEIGHT - BOTTOM
    place_x = _scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    place_y = _scale(y_low, y_high, bottom, TOP)

    def place(point: Point, sign: int = 0) -> tuple[float, float]:
        """The position of a point, or of an end of its interval."""
        y = min(max(point.y + sign * (point.half or 0), lowest), highest)
        return place_x(point.x), place_y(y)

    heights = [place(series.points[-1])[1] for series in chart.series]
    label_ys = spread(heights, TOP + 4, bottom)
    return DrawnLines(
        [_line(*each, place) for each in zip(chart.series, label_ys, strict=True)],
        _named(chart, place_x) if chart.x_labels else _axis(x_low, x_high, place_x, 5),
        _axis(y_low, y_high, place_y, 4), place_y(0) if y_low < 0 < y_high else None,
        [place_x(mark) for mark in chart.marks],
    )  # fmt: skip


def _line(series: Series, label_y: float, place: Callable[..., tuple[float, float]]) -> DrawnLine:
    band, whiskers = "", []
    if len(series.points) <= MOST_WHISKERS:
        whiskers = [
            Whisker(
                *place(p), place(p, -1)[1], place(p, 1)[1],
                f"{series.name}: {p.y:.4g}" + (f" ± {p.half:.2g}" if p.half else ""),
            )
            for p in series.points
        ]  # fmt: skip
    elif len(halves := [p for p in series.points if p.half is not None]) > 1:
        upper, lower = [place(p, 1) for p in halves], [place(p, -1) for p in reversed(halves)]
        band = _path(upper + lower) + "Z"
    path = _path([place(p) for p in series.points])
    return DrawnLine(series.name, series.colour, path, band, whiskers, label_y)


def _named(chart: LineChart, place: Scale) -> list[Tick]:
    """Names on the x axis: those of the marks first, then from the left as many as fit."""
    found: dict[int, Tick] = {}
    for i in [*chart.marks, *range(len(chart.x_labels))]:
        tick = Tick(place(i), chart.x_labels[i])
        # Each name is centred at its tick.
        if all(
            abs(tick.at - other.at) > CHARACTER * (len(tick.text) + len(other.text) + 1) / 2
            for other in found.values()
        ):
            found[i] = tick
    return [found[i] for i in sorted(found)]


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


class DrawnDot(NamedTuple):
    dot: Dot
    x: float
    low: float
    high: float
    y: float
    after: float | None


class DrawnDots(NamedTuple):
    """`left` and `right` are the x between which the dots are; the texts are outside."""

    left: float
    right: float
    height: float
    dots: list[DrawnDot]
    x_ticks: list[Tick]
    reference: float | None


def dots(plot: DotPlot) -> DrawnDots:
    """The positions of the rows of a dot plot."""
    values = [dot.value + sign * (dot.half or 0) for dot in plot.dots for sign in (-1, 1)]
    values += [x for x in (plot.reference, *(dot.after for dot in plot.dots)) if x is not None]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05
    low, high = low - margin, high + margin
    left = DOT_GAP + CHARACTER * min(MOST_LABEL, max(len(dot.label) for dot in plot.dots))
    right = WIDTH - DOT_GAP - CHARACTER * max(len(dot.text) for dot in plot.dots)
    place = _scale(low, high, left, right)
    drawn = [
        DrawnDot(
            dot, place(dot.value), place(dot.value - (dot.half or 0)),
            place(dot.value + (dot.half or 0)), 18 + ROW * row,
            None if dot.after is None else place(dot.after),
        )
        for row, dot in enumerate(plot.dots)
    ]  # fmt: skip
    reference = None if plot.reference is None else place(plot.reference)
    height = 18 + ROW * len(drawn) + 26
    return DrawnDots(left, right, height, drawn, _axis(low, high, place, 4), reference)


def height(block: LineChart | DotPlot) -> float:
    """The height of the drawing, without its title."""
    return HEIGHT if isinstance(block, LineChart) else dots(block).height


BOX_WIDTH, BOX_HEIGHT = 92.0, 52.0
BASE_WIDTH, FIRST, COLUMN, ROUND_HEIGHT = 84.0, 132.0, 124.0, 132.0
WHEEL_TOP = 34.0


class DrawnBox(NamedTuple):
    x: float
    y: float
    width: float
    stage: WheelStage


class DrawnRound(NamedTuple):
    """Boxes around `y`, and the paths to them from the base and from the previous round's end."""

    round: WheelRound
    y: float
    boxes: list[DrawnBox]
    from_base: str
    from_reference: str


class DrawnWheel(NamedTuple):
    width: float
    height: float
    base: DrawnBox | None
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
        x = BASE_WIDTH + 18
        from_base = f"M{x:g},{first_y:g}V{y:g}" if row else f"M{BASE_WIDTH:g},{y:g}"
        from_reference = _from_reference(last_x, y) if row else ""
        rounds.append(DrawnRound(each, y, boxes, f"{from_base}H{FIRST - 7:g}", from_reference))
        last_x = boxes[-1].x + BOX_WIDTH / 2 if boxes else last_x
    height = WHEEL_TOP + ROUND_HEIGHT * max(1, len(rounds)) - 54
    return DrawnWheel(width, height, base, rounds)


def _from_reference(last_x: float, y: float) -> str:
    """From below the last box of the row above, along the gap, down to this mid-training."""
    start, gap, end = y - ROUND_HEIGHT + BOX_HEIGHT / 2, y - BOX_HEIGHT / 2 - 38, FIRST + 24
    return (
        f"M{last_x:g},{start + 24:g}V{gap - 8:g}Q{last_x:g},{gap:g} {last_x - 8:g},{gap:g}"
        f"H{end + 8:g}Q{end:g},{gap:g} {end:g},{gap + 8:g}V{y - BOX_HEIGHT / 2 - 7:g}"
    )
