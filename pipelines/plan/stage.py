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
    """One stage of a plan.

    Attributes:
        kind: name of a row of `pipelines.plan.kinds.KINDS`.
        name: folder below the run directory, and name in the ledger.
        inputs: by role (base, ref, model), the name of an earlier stage (`name@2`: its second
            snapshot) or an external model. For an analysis, every model by the name of its stage.
        chat: evaluate only: use the chat template.
        num_steps: for a training by epochs, its optimizer steps if they are known; else 0.
        reads: contamination only: config keys of the sources that the other stages read.
    """

    kind: str
    name: str
    config: Config
    inputs: dict[str, str | ModelRef] = field(default_factory=dict)
    chat: bool = False
    reads: tuple[str, ...] = ()
    num_steps: int = 0
