"""The report: one self-contained page made from a run directory, and from nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pipelines.errors import UserError
from pipelines.report import accounts, objectives, scores, tokens, training, verdict
from pipelines.report.blocks import Report
from pipelines.report.record import Record, read_record
from pipelines.report.rendering import RENDERINGS
from pipelines.run_dir import RunDir, write_text


def write_report(
    run: RunDir, form: str = "html", *, with_text: bool = True, output: Path | None = None
) -> Path:
    """Write `report/index.html` (or `.md`, `.json`) of a run; its path.

    Args:
        form: html, md or json.
        with_text: False leaves training text, tokens and questions out.
        output: another file to write to.

    Raises:
        UserError: no run directory, an unknown form, or a file that cannot be written.
    """
    if form not in RENDERINGS:
        raise UserError(f"--format {form}: there are {', '.join(RENDERINGS)}.")
    path = output or run.root / "report" / f"index.{form}"
    text = RENDERINGS[form](compose(read_record(run), with_text))
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error
    return path


def compose(record: Record, with_text: bool = True) -> Report:
    """All sections of a report."""
    return Report(
        run=record.run.root.name,
        recipe=str(record.config.get("name", "")),
        when=_date(record),
        headline=verdict.headline(record),
        verdict=verdict.sentences(record),
        sections=[
            verdict.section(record),
            scores.section(record),
            objectives.section(record),
            training.section(record),
            tokens.heat_map_section(record, with_text),
            tokens.dynamics_section(record, with_text),
            tokens.contamination_section(record, with_text),
            accounts.cost_section(record),
            accounts.provenance_section(record),
        ],
    )


def _date(record: Record) -> str:
    """Of the last thing that happened, so that a run always makes the same report."""
    last = max((entry["time"] for entry in record.entries), default=0.0)
    return datetime.fromtimestamp(last, UTC).strftime("%Y-%m-%d %H:%M UTC")
