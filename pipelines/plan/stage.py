"""A stage of a plan, and the names of the stage folders outside of rounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipelines.models.checkpoint import ModelRef
from pipelines.recipe.schema import Config

BASE = "base"
BASE_EVAL = "base-eval"
CONTAMINATION = "contamination"
ANALYSIS = "analysis"
COMPARISON = "compare"


@dataclass(frozen=True)
class Stage:
    """One stage of a plan."""

    kind: str  # name of a row of `pipelines.plan.kinds.KINDS`
    name: str  # folder below the run directory, and name in the ledger
    config: Config
    # By role (base, ref, model), the name of an earlier stage (`name@2`: its second snapshot) or an
    # external model. For an analysis, every model by the name of its stage.
    inputs: dict[str, str | ModelRef] = field(default_factory=dict)
    chat: bool = False  # evaluate only: use the chat template
    reads: tuple[str, ...] = ()  # contamination only: keys of the sources that other stages read
    num_steps: int = 0  # of a training by epochs, if known
