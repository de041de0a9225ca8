"""Which benchmarks can run on this machine, and why the others cannot."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.errors import UserError
from pipelines.recipe.schema import BenchmarkConfig, EvalConfig


def unavailable(settings: EvalConfig, data_root: str) -> dict[str, str]:
    """Enabled benchmarks that cannot run here, with the reason.

    With `REMIT_DATA` set, or the hub switched off, a benchmark needs local files.
    """
    reasons = {n: _obstacle(b, data_root) for n, b in settings.benchmarks.items() if b.enabled}
    return {name: reason for name, reason in reasons.items() if reason}


def asked_here(settings: EvalConfig, data_root: str) -> dict[str, BenchmarkConfig]:
    """The enabled benchmarks that can run here."""
    enabled = {name: b for name, b in settings.benchmarks.items() if b.enabled}
    return {name: b for name, b in enabled.items() if not _obstacle(b, data_root)}


def check_available(settings: EvalConfig, data_root: str) -> None:
    """Refuse an evaluation that measures nothing, or reads benchmarks from a missing folder."""
    if not any(benchmark.enabled for benchmark in settings.benchmarks.values()):
        return
    given = os.environ.get("REMIT_DATA")
    if given and not Path(data_root).is_dir():
        raise UserError(
            f"REMIT_DATA={given}: benchmarks are read from data_root = {data_root}, which is not a "
            "folder. Set REMIT_DATA to the right folder, or unset it to read from the hub."
        )
    measures_more = settings.bits_per_byte or any(t.enabled for t in settings.tasks.values())
    if not measures_more and not asked_here(settings, data_root):
        raise nothing_asked(unavailable(settings, data_root))


def nothing_asked(reasons: dict[str, str]) -> UserError:
    """The error for an evaluation in which no benchmark can run and nothing else is measured."""
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return UserError(f"no benchmark can run here, and nothing else is measured: {listed}.")


def check_lengths(asked: dict[str, BenchmarkConfig], max_length: int | None) -> None:
    """Refuse answers that may fill the `max_length` tokens of the model (None: not known)."""
    for name, benchmark in asked.items():
        if max_length and benchmark.max_new_tokens >= max_length:
            raise UserError(
                f"eval.benchmarks.{name}.max_new_tokens = {benchmark.max_new_tokens} leaves no "
                f"room for a question: the model accepts {max_length} tokens. Lower it, or raise "
                "eval.max_length if the model accepts more."
            )


def is_local() -> bool:
    """Whether benchmarks may be read from local files only."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return bool(os.environ.get("REMIT_DATA")) or offline


def needs_hub(settings: EvalConfig, data_root: str) -> bool:
    """Whether an enabled benchmark must be downloaded from the hub."""
    enabled = [b for b in settings.benchmarks.values() if b.enabled]
    return not is_local() and any(not b.files or _missing(b, data_root) for b in enabled)


def _obstacle(benchmark: BenchmarkConfig, data_root: str) -> str:
    """Why a benchmark cannot run here; empty if it can."""
    if benchmark.runs_code:
        from pipelines.rewards import sandbox

        if reason := sandbox.unavailable():
            return reason
    missing = _missing(benchmark, data_root)
    if not missing or not is_local():
        return ""
    path = str(missing[0]).replace("{name}", "*")
    return f"file {path} does not exist (docs/guides/evaluation.md lists the files)"


def _missing(benchmark: BenchmarkConfig, data_root: str) -> list[Path]:
    """The files that do not exist; `{name}` in a path stands for any text."""
    root = Path(data_root)

    def exists(path: str) -> bool:
        if "{name}" in path:
            return any(root.glob(path.replace("{name}", "*")))
        return (root / path).is_file()

    return [root / path for path in benchmark.files.values() if not exists(path)]
