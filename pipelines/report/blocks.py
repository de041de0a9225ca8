"""The content of a report before rendering: sections of texts, tables, charts and token maps.

`rendering` turns it into HTML, SVG, Markdown or JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Missing:
    """A part that the run has no data for, and the command that produces it, if any."""

    what: str
    command: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, the text of its interval, and the number."""

    text: str
    interval: str = ""
    value: float | None = None

    @property
    def line(self) -> str:
        """Text and interval, such as `+5.5 ± 2.3`."""
        return f"{self.text} {self.interval}".rstrip()


NO_VALUE = Cell("\N{EN DASH}")


def number(
    value: float | None, digits: int, half: float | None = None, scale: float = 1, sign: str = ""
) -> Cell:
    """A cell of a number and its interval, both shown times `scale`; sign `+` shows every sign."""
    if value is None:
        return NO_VALUE
    around = "" if half is None else f"± {scale * half:.{digits}f}"
    return Cell(f"{scale * value:{sign}.{digits}f}", around, value)


def count(value: int) -> Cell:
    return Cell(f"{value:,}", value=value)


@dataclass(frozen=True)
class Table:
    """The first column holds the names of the rows; rows at `strong` summarize the others."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    strong: list[int] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Point:
    """`half` is half the 95% interval of y; None if unknown."""

    x: float
    y: float
    half: float | None = None


@dataclass(frozen=True)
class Series:
    """`colour` is an index in the palette: 0 the grey of the baseline, 7 that of variants."""

    name: str
    points: list[Point]
    colour: int


PERCENT = (0.0, 100.0)


@dataclass(frozen=True)
class LineChart:
    """Attributes:
    x, y: axis titles with units.
    x_labels: names of x = 0, 1, ...; empty if x is a number.
    limits: bounds of y; None if it has none.
    marks: indices of the x_labels that get a vertical line and are labelled first.
    """

    title: str
    x: str
    y: str
    series: list[Series]
    x_labels: list[str] = field(default_factory=list)
    note: str = ""
    limits: tuple[float, float] | None = None
    marks: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Dot:
    """`after` is a second value, drawn hollow; None without one."""

    label: str
    value: float
    half: float | None
    text: str
    colour: int = 1
    after: float | None = None


@dataclass(frozen=True)
class DotPlot:
    """One value with its interval per row.

    Attributes:
        x: axis title with unit.
        reference: position of a thin line, such as 0 for no difference.
    """

    title: str
    x: str
    dots: list[Dot]
    reference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class WheelStage:
    """Texts; `state` as `pipelines.run_dir.progress.stage_state`, time and score may be empty."""

    name: str
    title: str
    state: str
    time: str
    score: str


@dataclass(frozen=True)
class WheelRound:
    """`mid` and `post` are the accuracies after mid-training and after post-training, as texts.

    `reference` is the stage whose model weights the tokens; empty in a plain round.
    """

    number: int
    reference: str
    stages: list[WheelStage]
    mid: str
    post: str


@dataclass(frozen=True)
class Wheel:
    base: WheelStage | None
    base_score: str
    rounds: list[WheelRound]


@dataclass(frozen=True)
class Token:
    """One token of a training sequence; the numbers are None if it is not a target."""

    text: str
    weight: float | None
    d: float | None
    logprob: float | None
    ref_logprob: float | None


@dataclass(frozen=True)
class Sequence:
    """A training sequence with the hash of its text; no `tokens` if it may not be shown."""

    label: str
    source: str
    domain: str
    licence: str
    sha256: str
    num_tokens: int
    mean_weight: float | None
    tokens: list[Token]


@dataclass(frozen=True)
class HeatMap:
    sequences: list[Sequence]


@dataclass(frozen=True)
class Fold:
    """Facts below a title, collapsed at first."""

    title: str
    facts: list[tuple[str, str]]


Block = Missing | Text | Table | LineChart | DotPlot | Wheel | HeatMap | Fold


def filled(*blocks: Block) -> list[Block]:
    """The blocks without tables that have no row and dot plots that have no dot."""
    return [
        block for block in blocks
        if not (isinstance(block, Table) and not block.rows)
        and not (isinstance(block, DotPlot) and not block.dots)
    ]  # fmt: skip


@dataclass(frozen=True)
class Section:
    """`key` is the anchor on the page."""

    key: str
    title: str
    lead: str
    blocks: list[Block]


@dataclass(frozen=True)
class Report:
    """The main result in a sentence, one sentence per round (`verdict`), and the details.

    `run` is the name of the run directory, `when` the date of its last event.
    """

    run: str
    recipe: str
    when: str
    headline: str
    verdict: list[str]
    sections: list[Section]
