"""Which benchmarks can be asked on this machine, and why the others cannot."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.errors import UserError
from pipelines.recipe.schema import BenchmarkConfig, EvalConfig


def unavailable(settings: EvalConfig, data_root: str) -> dict[str, str]:
    """Enabled benchmarks that cannot be asked here, with the reason.

    With `REMIT_DATA` set, or the hub switched off, nothing is fetched: a benchmark without its
    local files is left out by name.
    """
    reasons = {n: _obstacle(b, data_root) for n, b in settings.benchmarks.items() if b.enabled}
    return {name: reason for name, reason in reasons.items() if reason}


def asked_here(settings: EvalConfig, data_root: str) -> dict[str, BenchmarkConfig]:
    """The enabled benchmarks without those of `unavailable`."""
    left_out = unavailable(settings, data_root)
    found = settings.benchmarks.items()
    return {name: b for name, b in found if b.enabled and name not in left_out}


def check_available(settings: EvalConfig, data_root: str) -> None:
    """Refuse an evaluation that would measure nothing.

    Raises:
        UserError: `REMIT_DATA` names no folder and benchmarks would be looked for below it, or no
            benchmark can be asked and nothing else is measured.
    """
    enabled = [benchmark for benchmark in settings.benchmarks.values() if benchmark.enabled]
    if not enabled:
        return
    given = os.environ.get("REMIT_DATA")
    if given and not Path(data_root).is_dir():
        raise UserError(
            f"REMIT_DATA={given}: benchmarks are read below data_root = {data_root}, which is no "
            "folder. Export the right one, or unset it to read from the hub."
        )
    if any(task.enabled for task in settings.tasks.values()) or settings.bits_per_byte:
        return
    if any(not _obstacle(benchmark, data_root) for benchmark in enabled):
        return
    raise nothing_asked(unavailable(settings, data_root))


def nothing_asked(reasons: dict[str, str]) -> UserError:
    """What to say where no benchmark can be asked and nothing else is measured."""
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return UserError(
        f"no benchmark can be asked here, and nothing else is measured: {listed}. "
        "docs/guides/evaluation.md lists the files of each."
    )


def check_lengths(asked: dict[str, BenchmarkConfig], max_length: int | None) -> None:
    """Refuse answers that leave no room for a question.

    Args:
        max_length: tokens that the model takes; None where it does not say.

    Raises:
        UserError: names the first benchmark whose answers are too long.
    """
    for name, benchmark in asked.items():
        if max_length and benchmark.max_new_tokens >= max_length:
            raise UserError(
                f"eval.benchmarks.{name}.max_new_tokens = {benchmark.max_new_tokens} leaves no "
                f"room for a question in the {max_length} tokens that the model takes. Lower it, "
                "or raise eval.max_length for a model that can take more."
            )


def is_local() -> bool:
    """Whether benchmarks may be read from local files only."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return bool(os.environ.get("REMIT_DATA")) or offline


def needs_hub(settings: EvalConfig, data_root: str) -> bool:
    """Whether a benchmark that will be asked has no local files."""
    return not is_local() and any(
        not benchmark.files or _missing(benchmark, data_root)
        for benchmark in settings.benchmarks.values()
        if benchmark.enabled
    )


def _obstacle(benchmark: BenchmarkConfig, data_root: str) -> str:
    """Why a benchmark cannot be asked here; empty where it can."""
    if benchmark.runs_code:
        from pipelines.rewards import sandbox

        if reason := sandbox.unavailable():
            return reason
    missing = _missing(benchmark, data_root)
    return f"no file {missing[0]}" if missing and is_local() else ""


def _missing(benchmark: BenchmarkConfig, data_root: str) -> list[Path]:
    root = Path(data_root)
    return [root / path for path in benchmark.files.values() if not _exists(root, path)]


def _exists(root: Path, path: str) -> bool:
    """Whether a file is there; `{name}` stands for any text."""
    if "{name}" not in path:
        return (root / path).is_file()
    return any(root.glob(path.replace("{name}", "*")))
