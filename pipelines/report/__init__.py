"""The report: one self-contained page made from a run directory, or from rows, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipelines.comparison import rows
from pipelines.errors import UserError
from pipelines.report import accounts, objectives, scores, tokens, training, verdict
from pipelines.report.blocks import Report
from pipelines.report.record import Record, read_record, record_of_rows
from pipelines.report.rendering import RENDERINGS, with_charts
from pipelines.run_dir.paths import RunDir, write_text


@dataclass(frozen=True)
class Wanted:
    """What a report is to be.

    Attributes:
        form: html, svg (the charts alone), md or json.
        with_text: False leaves training text, tokens and questions out.
        arms: of a comparison, to show; None: all.
        against: the arm of a comparison that all others are held against; None: each its own.
        seeds: of a comparison, to show; None: all.
        chart: of svg, a text that the titles of its charts have; None: all.
    """

    form: str = "html"
    with_text: bool = True
    arms: Sequence[str] | None = None
    against: str | None = None
    seeds: Sequence[str] | None = None
    chart: str | None = None


def write_report(run: RunDir, wanted: Wanted | None = None, output: Path | None = None) -> Path:
    """Write `report/index.html` (or `.svg`, `.md`, `.json`) of a run, or `output`; its path.

    Raises:
        UserError: no run directory, an unknown form, arm or seed, or a file that cannot be written.
    """
    wanted = wanted or Wanted()
    _check_form(wanted)
    if not run.root.exists():
        raise UserError(f"{run.root}: there is no such folder or file.")
    record = read_record(run)
    chosen = {"--arms": wanted.arms, "--against": wanted.against, "--seeds": wanted.seeds}
    given = [option for option, value in chosen.items() if value is not None]
    if given and not record.rows:
        raise UserError(
            f"{given[0]} chooses of a comparison, and {run.root} has none: leave it out."
        )
    found = rows.shown(record.rows, wanted.arms, wanted.against, wanted.seeds)
    path = output or run.root / "report" / f"index.{wanted.form}"
    return _write(compose(replace(record, rows=found), wanted.with_text), wanted, path)


def write_rows_report(paths: Sequence[Path], wanted: Wanted, output: Path | None = None) -> Path:
    """Write the report of a comparison from its rows alone; beside the first file, if not `output`.

    Raises:
        UserError: as `write_report`; a line that is no row, or rows that do not belong together.
    """
    _check_form(wanted)
    path = output or paths[0].with_suffix(f".{wanted.form}")
    if path.resolve() in {given.resolve() for given in paths}:
        raise UserError(f"--output {path} is one of the files that are read: name another.")
    found = rows.shown(rows.collected(paths), wanted.arms, wanted.against, wanted.seeds)
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no row to report on.")
    record = record_of_rows(paths, found)
    report = Report(
        run=record.run.root.name,
        recipe="",
        when=f"{len(found)} rows",
        headline=verdict.headline(record),
        verdict=[],
        sections=[objectives.section(record)],
    )
    return _write(report, wanted, path)


def _check_form(wanted: Wanted) -> None:
    if wanted.form not in RENDERINGS:
        raise UserError(f"--format {wanted.form}: there are {', '.join(RENDERINGS)}.")
    if wanted.chart is not None and wanted.form != "svg":
        raise UserError("--chart chooses charts of --format svg.")


def _write(report: Report, wanted: Wanted, path: Path) -> Path:
    if wanted.chart is not None:
        report = with_charts(report, wanted.chart)
    text = RENDERINGS[wanted.form](report)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error
    return path


def compose(record: Record, with_text: bool = True) -> Report:
    """All sections of a report; of a comparison alone, those that a comparison can have."""
    of_a_wheel = not record.only_compares
    wheel = [verdict.section(record), scores.section(record)] if of_a_wheel else []
    tokens_seen = [
        tokens.heat_map_section(record, with_text), tokens.dynamics_section(record, with_text),
    ] if of_a_wheel else []  # fmt: skip
    return Report(
        run=record.run.root.name,
        recipe=str(record.config.get("name", "")),
        when=_date(record),
        headline=verdict.headline(record),
        verdict=verdict.sentences(record),
        sections=[
            *wheel,
            objectives.section(record),
            training.section(record),
            *tokens_seen,
            tokens.contamination_section(record, with_text),
            accounts.cost_section(record),
            accounts.provenance_section(record),
        ],
    )


def _date(record: Record) -> str:
    """Of the last thing that happened, so that a run always makes the same report."""
    last = max((entry["time"] for entry in record.entries), default=0.0)
    return datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d %H:%M UTC")
