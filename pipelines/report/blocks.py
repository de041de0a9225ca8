"""The content of a report before rendering: sections of texts, tables, charts and token maps.

`rendering` turns it into HTML, SVG, Markdown or JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Missing:
    """A part that the run has no data for, and the command that produces the data."""

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


NO_VALUE = Cell("\N{EN DASH}")


@dataclass(frozen=True)
class Table:
    """Attributes:
    columns: headings; the first column holds the names of the rows.
    strong: indices of the rows that summarize the others.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    strong: list[int] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Point:
    """Attributes:
    half: half the 95% interval of y; None if unknown.
    """

    x: float
    y: float
    half: float | None = None


@dataclass(frozen=True)
class Series:
    """Attributes:
    colour: index in the palette; 0 is the grey of the baseline, 7 the colour of variants.
    """

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
    """Attributes:
    after: a second value, drawn hollow; None without one.
    """

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
    """Attributes:
    state: see `pipelines.run_dir.progress.stage_state`.
    time, score: texts; empty if unknown.
    """

    name: str
    title: str
    state: str
    time: str
    score: str


@dataclass(frozen=True)
class WheelRound:
    """Attributes:
    reference: stage whose model weights the tokens of its mid-training; empty in a plain round.
    mid, post: accuracy after mid-training and after post-training, as texts.
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
    """Attributes:
    tokens: empty if the text may not be shown.
    sha256: hash of the text.
    """

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


@dataclass(frozen=True)
class Section:
    """Attributes:
    key: anchor on the page.
    """

    key: str
    title: str
    lead: str
    blocks: list[Block]


@dataclass(frozen=True)
class Report:
    """Attributes:
    run: name of the run directory.
    headline: the main result in a sentence; `verdict` has a sentence per round.
    when: date of the last event in the run.
    """

    run: str
    recipe: str
    when: str
    headline: str
    verdict: list[str]
    sections: list[Section]
