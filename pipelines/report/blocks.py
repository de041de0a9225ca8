"""What a report is made of, before it is drawn: sections of texts, tables, charts and token maps.

HTML, Markdown and JSON are three renderings of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Missing:
    """A part that the run has no data for, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown, its interval as shown, and the plain number."""

    text: str
    interval: str = ""
    value: float | None = None


NO_VALUE = Cell("\N{EN DASH}")


@dataclass(frozen=True)
class Table:
    """Attributes:
    columns: headings; the first column holds the names of the rows.
    strong: numbers of the rows that sum up the others.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    strong: list[int] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Point:
    """Attributes:
    half: half the 95% interval of y; None where there is none.
    """

    x: float
    y: float
    half: float | None = None


@dataclass(frozen=True)
class Series:
    """Attributes:
    colour: number in the palette; 0 is the baseline's grey, 7 that of arms of one's own.
    """

    name: str
    points: list[Point]
    colour: int


PERCENT = (0.0, 100.0)


@dataclass(frozen=True)
class LineChart:
    """Attributes:
    x, y: axis titles with units.
    x_labels: names of x = 0, 1, ...; empty where x is a number.
    limits: what y cannot leave; None where it has no bounds.
    marks: numbers of the x_labels that are named first, each with a line.
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
    after: a second value, drawn hollow; None where there is none.
    """

    label: str
    value: float
    half: float | None
    text: str
    colour: int = 1
    after: float | None = None


@dataclass(frozen=True)
class DotPlot:
    """One value with its interval a row.

    Attributes:
        x: axis title with unit.
        reference: where a thin line stands, such as no difference.
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
    time, score: as shown; empty where there is none.
    """

    name: str
    title: str
    state: str
    time: str
    score: str


@dataclass(frozen=True)
class WheelRound:
    """Attributes:
    reference: what weights the tokens of its mid-training; empty in a plain round.
    mid, post: accuracy after mid-training and after post-training, as shown.
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
    """One token of a training sequence; the numbers are None where it is no target."""

    text: str
    weight: float | None
    d: float | None
    logprob: float | None
    ref_logprob: float | None


@dataclass(frozen=True)
class Sequence:
    """Attributes:
    tokens: empty where the text may not be shown.
    sha256: of the text.
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
    """Facts behind a title, closed at first."""

    title: str
    facts: list[tuple[str, str]]


Block = Missing | Text | Table | LineChart | DotPlot | Wheel | HeatMap | Fold


@dataclass(frozen=True)
class Section:
    """Attributes:
    key: anchor in the page.
    """

    key: str
    title: str
    lead: str
    blocks: list[Block]


@dataclass(frozen=True)
class Report:
    """Attributes:
    run: name of the run directory.
    headline: the verdict in a sentence; `verdict` has every round.
    when: date of the last thing that happened in the run.
    """

    run: str
    recipe: str
    when: str
    headline: str
    verdict: list[str]
    sections: list[Section]
