"""Load benchmark data from the hub: a gated data set is skipped, other failures are errors."""

from __future__ import annotations

import dataclasses
from typing import Any

from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError

from pipelines.errors import UserError
from pipelines.evals.availability import needs_hub
from pipelines.evals.benchmarks import leaves
from pipelines.recipe.schema import BenchmarkConfig, EvalConfig

# The bases of HfHubHTTPError cover every error of the hub's HTTP client.
_HUB_ERRORS = (DatasetsError, OSError, *HfHubHTTPError.__bases__)


def loaded_or_refused(
    name: str, benchmark: BenchmarkConfig, tasks: Any, settings: EvalConfig, data_root: str
) -> tuple[dict[str, Any], str]:
    """Load the subtasks of a benchmark with `leaves`, or return why the hub refuses their data.

    One of the two is empty. The hub refuses a data set that is gated or does not exist for this
    user. If the hub does not answer, it may answer later, so that is a UserError.
    """
    try:
        return leaves(name, benchmark, tasks), ""
    except _HUB_ERRORS as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        refused = isinstance(error, DatasetNotFoundError) or status in (401, 403)
        asks_hub = needs_hub(dataclasses.replace(settings, benchmarks={name: benchmark}), data_root)
        if asks_hub and refused:
            return {}, f"the hub refused access to its data: {said}"
        if not asks_hub and not isinstance(error, (ConnectionError, TimeoutError)):
            raise
        raise UserError(
            f"eval.benchmarks.{name}: its data could not be downloaded from the hub "
            f"({said}). Run the same command again when the hub can be reached, or give "
            "local files (docs/guides/evaluation.md lists them)."
        ) from error
