"""The report: one self-contained page, made only from the files of a run or from rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipelines.comparison import rows
from pipelines.errors import UserError
from pipelines.report import accounts, objectives, scores, tokens, training, verdict
from pipelines.report.blocks import Missing, Report
from pipelines.report.record import Record, read_record, record_of_rows
from pipelines.report.rendering import RENDERINGS, with_charts
from pipelines.run_dir.paths import RunDir, write_text


@dataclass(frozen=True)
class Wanted:
    """The options of `remit report`; None for arms, seeds and chart: all.

    Attributes:
        with_text: False leaves out training text, tokens and questions.
        against: the baseline arm of a comparison; None: the one that each arm names.
        chart: with svg, show only charts with this text in their title.
    """

    form: str = "html"
    with_text: bool = True
    arms: Sequence[str] | None = None
    against: str | None = None
    seeds: Sequence[str] | None = None
    chart: str | None = None


def write_report(run: RunDir, wanted: Wanted | None = None, output: Path | None = None) -> Path:
    """Write the report of a run to `output` or `RUN/report/index.*`; return the path.

    Raises:
        UserError: not a run directory, an unknown form, arm or seed, or an unwritable output file.
    """
    wanted = wanted or Wanted()
    _check_form(wanted)
    if not run.root.exists():
        raise UserError(f"{run.root} does not exist.")
    record = read_record(run)
    chosen = {"--arms": wanted.arms, "--against": wanted.against, "--seeds": wanted.seeds}
    given = [option for option, value in chosen.items() if value is not None]
    if given and not record.rows:
        raise UserError(
            f"{given[0]} applies to comparisons, and {run.root} has none: leave it out."
        )
    found = rows.shown(record.rows, wanted.arms, wanted.against, wanted.seeds)
    path = output or run.root / "report" / f"index.{wanted.form}"
    return _write(compose(replace(record, rows=found), wanted.with_text), wanted, path)


def write_rows_report(paths: Sequence[Path], wanted: Wanted, output: Path | None = None) -> Path:
    """Write the report of a comparison from rows, by default next to the first file of them.

    Raises:
        UserError: as `write_report`; a line is not a valid row, or rows are of different studies.
    """
    _check_form(wanted)
    path = output or paths[0].with_suffix(f".{wanted.form}")
    if path.resolve() in {given.resolve() for given in paths}:
        raise UserError(f"--output {path} is one of the input files: choose another.")
    found = rows.shown(rows.collected(paths), wanted.arms, wanted.against, wanted.seeds)
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: no rows found.")
    record = record_of_rows(paths, found)
    name, headline, when = record.run.root.name, verdict.headline(record), f"{len(found)} rows"
    return _write(Report(name, "", when, headline, [], [objectives.section(record)]), wanted, path)


def _check_form(wanted: Wanted) -> None:
    if wanted.form not in RENDERINGS:
        raise UserError(f"--format {wanted.form}: choose from {', '.join(RENDERINGS)}.")
    if wanted.chart is not None and wanted.form != "svg":
        raise UserError("--chart works only with --format svg.")


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
    """All sections of a report; without those of a flywheel if the run is only a comparison."""
    is_flywheel = not record.only_compares
    results = [verdict.section(record), scores.section(record)] if is_flywheel else []
    token_sections = [
        tokens.heat_map_section(record, with_text), tokens.dynamics_section(record, with_text),
    ] if is_flywheel else []  # fmt: skip
    # The time of the last event, so that the same run always gives the same report.
    last = max((entry["time"] for entry in record.entries), default=0.0)
    report = Report(
        run=record.run.root.name,
        recipe=str(record.config.get("name", "")),
        when=datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=verdict.headline(record),
        verdict=verdict.sentences(record),
        sections=[
            *results,
            objectives.section(record),
            training.section(record),
            *token_sections,
            tokens.contamination_section(record, with_text),
            accounts.cost_section(record),
            accounts.provenance_section(record),
        ],
    )
    for section in report.sections:
        for i, block in enumerate(section.blocks):
            if isinstance(block, Missing):
                section.blocks[i] = Missing(block.what, record.command(block.command))
    return report
