"""A benchmark whose data come from the hub: left out where it is gated, an error else."""

from __future__ import annotations

import dataclasses
from typing import Any

from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from pipelines.errors import UserError
from pipelines.evals.availability import needs_hub
from pipelines.evals.benchmarks import leaves
from pipelines.recipe.schema import BenchmarkConfig, EvalConfig

# The bases are those of all errors of the hub's HTTP client.
_HUB_ERRORS = (DatasetsError, OSError, *HfHubHTTPError.__bases__)
_FORBIDDEN = (401, 403)


def loaded_or_refused(
    name: str, benchmark: BenchmarkConfig, tasks: Any, settings: EvalConfig, data_root: str
) -> tuple[dict[str, Any], str]:
    """The single tasks of a benchmark as `leaves` gives them, and why the hub refuses their data.

    Of the two one is empty. A set that is gated, or is not there for who asks, is refused for good;
    a hub that does not answer may answer later, so that is an error.

    Raises:
        UserError: as `leaves`; or the hub gave no data for another reason, as one out of reach.
    """
    try:
        return leaves(name, benchmark, tasks), ""
    except _HUB_ERRORS as error:
        asks_hub = needs_hub(dataclasses.replace(settings, benchmarks={name: benchmark}), data_root)
        if asks_hub and _is_forbidden(error):
            return {}, f"the hub refused its data: {_words(error)}"
        if not asks_hub and not isinstance(error, (ConnectionError, TimeoutError)):
            raise
        raise UserError(
            f"eval.benchmarks.{name}: its data could not be had from the hub "
            f"({_words(error)}). The same command goes on from here once the hub answers; "
            "docs/guides/evaluation.md says which local files it reads instead."
        ) from error


def _is_forbidden(error: BaseException) -> bool:
    """Whether the hub answered, and the answer was no."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return isinstance(error, DatasetNotFoundError) or status in _FORBIDDEN


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
