"""The renderings of a report: one HTML page, its charts as one SVG, Markdown, JSON.

The template engine escapes every string. In addition, the page's content security policy allows
only the page's own script, identified by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelines.errors import UserError
from pipelines.report import blocks, charts

SHADES = 4
# The deepest shade stands for at least this distance of a weight from 1.
LEAST_SCALE = 0.2


def page(report: blocks.Report) -> str:
    """One self-contained HTML page."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("page.html").render(
        report=report, script=script, script_hash=digest,
        style=_asset("charts.css") + _asset("page.css"),
    )  # fmt: skip


TITLE_HEIGHT, CHART_GAP = 26.0, 26.0
NOTE_CHARACTERS, NOTE_LINE = 76, 15.0


def picture(report: blocks.Report) -> str:
    """The charts of a report, one below the other, as one SVG.

    Raises:
        UserError: the report has no chart.
    """
    drawn, y = [], 0.0
    for block in _charts(report):
        note = textwrap.wrap(block.note, NOTE_CHARACTERS)
        note_y = TITLE_HEIGHT + charts.height(block)
        drawn.append({"block": block, "y": y, "note": note, "note_y": note_y})
        y += note_y + NOTE_LINE * len(note) + CHART_GAP
    if not drawn:
        raise UserError("--format svg: the report has no chart yet.")
    return _environment().get_template("charts.svg").render(
        drawn=drawn, height=y - CHART_GAP, title_height=TITLE_HEIGHT, style=_asset("charts.css"),
    )  # fmt: skip


def markdown(report: blocks.Report) -> str:
    """Texts and tables; a chart becomes a table of its values, a token map a list of its texts."""
    lines = [f"# {plain(report.headline)}", "", f"Run `{plain(report.run)}`, {report.when}.", ""]
    lines += [f"- {plain(sentence)}" for sentence in report.verdict]
    for section in report.sections:
        lines += ["", f"## {plain(section.title)}", ""]
        lines += [plain(section.lead), ""] if section.lead else []
        for block in section.blocks:
            lines += [*MARKDOWN[type(block)](block), ""]
    return "\n".join(lines).rstrip() + "\n"


def with_charts(report: blocks.Report, text: str) -> blocks.Report:
    """The report reduced to the charts whose title contains a text.

    Raises:
        UserError: no title contains it.
    """
    kept: list[blocks.Block] = [chart for chart in _charts(report) if text in chart.title]
    if not kept:
        titles = "; ".join(chart.title for chart in _charts(report)) or "none"
        raise UserError(
            f"--chart {text}: no title of a chart contains this. The charts are: {titles}."
        )
    return replace(report, sections=[blocks.Section("charts", "Charts", "", kept)])


def _charts(report: blocks.Report) -> list[blocks.LineChart | blocks.DotPlot]:
    every = (block for section in report.sections for block in section.blocks)
    return [block for block in every if isinstance(block, blocks.LineChart | blocks.DotPlot)]


def as_json(report: blocks.Report) -> str:
    """The report's blocks with their numbers; `kind` is the type of a block."""
    sections = [
        vars(section) | {"blocks": [{"kind": kind(b)} | asdict(b) for b in section.blocks]}
        for section in report.sections
    ]
    return json.dumps(vars(report) | {"sections": sections}, indent=1, allow_nan=False) + "\n"


RENDERINGS: dict[str, Callable[[blocks.Report], str]] = {
    "html": page, "svg": picture, "md": markdown, "json": as_json,
}  # fmt: skip


def kind(block: blocks.Block) -> str:
    return type(block).__name__


def shade(weight: float | None, scale: float) -> str:
    """The CSS class of a token's colour: `h1` to `h4` above 1, `l1` to `l4` below."""
    if weight is None:
        return "none"
    depth = max(-SHADES, min(SHADES, round(SHADES * (weight - 1) / scale)))
    return f"{'h' if depth > 0 else 'l'}{abs(depth)}" if depth else ""


def weight_scale(sequences: Sequence[blocks.Sequence]) -> float:
    """The largest distance of a shown weight from 1."""
    weights = [t.weight for s in sequences for t in s.tokens if t.weight is not None]
    return max([LEAST_SCALE, *(abs(weight - 1) for weight in weights)])


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _asset(name: str) -> Markup:
    return Markup((files("pipelines.report") / "templates" / name).read_text("utf-8"))


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("pipelines.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters.update(kind=kind, figure=_figure)
    found.globals.update(
        charts=charts, shade=shade, weight_scale=weight_scale, word_columns=_word_columns
    )
    return found


def _word_columns(table: blocks.Table) -> set[int]:
    """Indices of the columns without a number."""
    columns = enumerate(zip(*table.rows, strict=True))
    return {i for i, cells in columns if all(cell.value is None for cell in cells)}


def plain(text: str) -> str:
    """Text escaped for Markdown: no tags, table borders or line breaks."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "'")


def _grid(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> list[str]:
    head, *body = ("| " + " | ".join(map(plain, cells)) + " |" for cells in (columns, *rows))
    rule = "|---|" + "---:|" * (len(columns) - 1)
    return [f"**{plain(title)}**", "", head, rule, *body, *(["", plain(note)] if note else [])]


def _table(table: blocks.Table) -> list[str]:
    rows = [[f"{c.text} ({c.interval})" if c.interval else c.text for c in r] for r in table.rows]
    return _grid(table.title, table.columns, rows, table.note)


# Up to this many points of a chart get a column each in its table.
FEW_POINTS = 8


def _line_chart(chart: blocks.LineChart) -> list[str]:
    """A table of all points if they are few, otherwise of each line's first and last point."""
    title = f"{chart.title} ({chart.y} by {chart.x})"
    places = sorted({point.x for series in chart.series for point in series.points})
    if len(places) <= FEW_POINTS:
        columns = [_place(chart, x) for x in places]
        known = [{point.x: _height(point) for point in line.points} for line in chart.series]
        shown = [[heights.get(x, blocks.NO_VALUE.text) for x in places] for heights in known]
    else:
        columns = ["first", "last"]
        shown = [
            [f"{_height(p)} at {_place(chart, p.x)}" for p in (line.points[0], line.points[-1])]
            for line in chart.series
        ]
    rows = [[line.name, *texts] for line, texts in zip(chart.series, shown, strict=True)]
    return _grid(title, ["line", *columns], rows, chart.note)


def _place(chart: blocks.LineChart, x: float) -> str:
    return chart.x_labels[int(x)] if chart.x_labels else f"{x:g}"


def _height(point: blocks.Point) -> str:
    half = "" if point.half is None else f" ± {point.half:.3g}"
    return f"{point.y:.4g}{half}"


def _wheel(wheel: blocks.Wheel) -> list[str]:
    every = [wheel.base] if wheel.base else []
    every += [stage for each in wheel.rounds for stage in each.stages]
    rows = [[stage.name, stage.state, stage.time, stage.score] for stage in every]
    return _grid("The flywheel", ["stage", "state", "time", "result"], rows)


def _heat_map(heat_map: blocks.HeatMap) -> list[str]:
    rows = []
    for s in heat_map.sequences:
        numbers = [str(s.num_tokens), _figure(s.mean_weight)]
        rows.append([s.label, s.source, s.domain, s.licence, s.sha256[:12], *numbers])
    columns = ["text", "source", "domain", "licence", "sha256", "tokens", "mean weight"]
    return _grid("Texts of the token map", columns, rows)


MARKDOWN: dict[type, Callable[[Any], list[str]]] = {
    blocks.Missing: lambda block: [
        plain(block.what) + (f" To get it, run `{plain(block.command)}`" if block.command else "")
    ],
    blocks.Text: lambda block: [plain(block.text)],
    blocks.Table: _table,
    blocks.LineChart: _line_chart,
    blocks.DotPlot: lambda plot: _grid(
        plot.title, ["", plot.x], [[dot.label, dot.text] for dot in plot.dots], plot.note
    ),
    blocks.Wheel: _wheel,
    blocks.HeatMap: _heat_map,
    blocks.Fold: lambda block: _grid(block.title, ["", "value"], block.facts),
}
