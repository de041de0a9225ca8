"""The objectives of mid-training, one row each: what planning and training must know about it.

To add an objective, add a row here, its name to `mid_train.objective`, and its weights or loss to
`pipelines/objectives/objective.py` (docs/guides/add-an-objective.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ObjectiveKind:
    name: str
    # What it reads of the reference: nothing, one number per token (the log-probability of the
    # target, which the score cache keeps), or its distribution over the vocabulary.
    reads: Literal["nothing", "logprobs", "distribution"]
    weights_tokens: bool = False
    # It chooses whole sequences from a pool before training, by scores of the cache.
    selects_sequences: bool = False
    section: str = ""  # of mid_train, with its settings

    @property
    def needs_reference(self) -> bool:
        return self.reads != "nothing"


OBJECTIVES = (
    ObjectiveKind("ntp", reads="nothing"),
    ObjectiveKind("kd", reads="distribution", section="kd"),
    ObjectiveKind("miniplm", reads="logprobs", selects_sequences=True),
    ObjectiveKind("rho1", reads="logprobs", weights_tokens=True, section="rho1"),
    ObjectiveKind("remit", reads="logprobs", weights_tokens=True, section="remit"),
)
_BY_NAME = {kind.name: kind for kind in OBJECTIVES}


def objective_kind(name: str) -> ObjectiveKind:
    """The row of an objective (`auto` must be resolved); raises KeyError for an unknown name."""
    return _BY_NAME[name]
