"""A mid-training objective (one row of the paper's table): it turns scores into a step's loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipelines.objectives.losses import distillation, self_normalized_nll, weighted_nll
from pipelines.objectives.weights import (
    Center,
    WeightMap,
    remit_weights,
    rho1_weights,
)
from pipelines.recipe.schema import MidTrainConfig, objective_kind


@dataclass(frozen=True)
class Objective:
    """Turns the per-token scores of learner and reference into a loss."""

    name: str  # of a row of `OBJECTIVES`
    # Arguments of `remit_weights`.
    eps: float = 0.2
    center: Center = "sequence"
    map: WeightMap = "sigmoid"
    standardize: bool = False
    detach: bool = True
    # ReMiT's loss is divided by the number of targets, or by the sum of the weights.
    divisor: Literal["targets", "weights"] = "targets"
    # The tokens of center="batch", divisor="weights" and RHO-1's ranking: on one rank, or all.
    scope: Literal["micro_batch", "step"] = "micro_batch"
    keep: float = 0.6  # fraction of the targets that RHO-1 trains on
    alpha: float = 0.5  # weight of the KL term in `kd`

    @classmethod
    def of(cls, settings: MidTrainConfig) -> Objective:
        """Build the objective from the settings of a recipe, with `auto` already resolved."""
        assert settings.objective != "auto"
        remit = settings.remit
        return cls(
            # MiniPLM selects whole sequences and trains on them by next-token prediction.
            "ntp" if settings.objective == "miniplm" else settings.objective,
            eps=remit.eps, center=remit.center, map=remit.map,
            standardize=remit.standardize, detach=remit.detach, divisor=remit.divisor,
            scope=settings.scope, keep=settings.rho1.keep, alpha=settings.kd.alpha,
        )  # fmt: skip

    @property
    def uses_weights(self) -> bool:
        """Whether the objective weights tokens."""
        return objective_kind(self.name).weights_tokens

    @property
    def uses_ref_logprobs(self) -> bool:
        """Whether it weights tokens by the reference's log-probability of each target."""
        return self.uses_weights and objective_kind(self.name).reads == "logprobs"

    @property
    def uses_kl(self) -> bool:
        """Whether the objective needs the reference's distribution over the whole vocabulary."""
        return objective_kind(self.name).reads == "distribution"

    @property
    def clip(self) -> float | None:
        """Weights are clipped to 1 +- clip; None: they are not clipped."""
        return self.eps if self.name == "remit" else None

    @property
    def divides_by_weights(self) -> bool:
        """Whether the step's divisor depends on the weights of the whole step."""
        return self.name == "rho1" or (self.name == "remit" and self.divisor == "weights")

    def weights(
        self, logprobs: Tensor, ref_logprobs: Tensor | None, mask: Tensor, documents: Tensor | None
    ) -> Tensor:
        """Compute token weights [batch, seq] from log-probabilities [batch, seq].

        Args:
            logprobs: the learner's, of each target; rounding may put one slightly above 0.
            ref_logprobs: the reference's; None if the objective does not read them.
            mask: true where the position has a target, [batch, seq].
            documents: document number of each position, [batch, seq]; needed for
                `center="document"`.
        """
        if self.name == "remit" and ref_logprobs is not None:
            return remit_weights(
                logprobs, ref_logprobs, mask, eps=self.eps, center=self.center, map=self.map,
                standardize=self.standardize, detach=self.detach, documents=documents,
            )  # fmt: skip
        if self.name == "rho1" and ref_logprobs is not None:
            return rho1_weights(logprobs, ref_logprobs, mask, k=self.keep)
        raise ValueError(f"objective {self.name} has no weights for what it was given")

    def loss(
        self,
        scores: dict[str, Tensor],
        weights: Tensor | None,
        mask: Tensor,
        num_targets: Tensor | float,
        step_divisor: float | None = None,
    ) -> Tensor:
        """Compute what one micro-batch adds to the loss of its step, a scalar.

        Args:
            scores: `nll` and, for `kd`, `kl`; each [batch, seq].
            weights: token weights, [batch, seq]; None for `ntp` and `kd`.
            mask: true where the position has a target, [batch, seq].
            num_targets: number of targets in the whole step, over all ranks and micro-batches.
            step_divisor: sum of the weights of the whole step, if the loss is divided by it and
                `scope` is `step`.
        """
        nll = scores["nll"]
        if self.uses_kl:
            return distillation(nll, scores["kl"], num_targets, alpha=self.alpha)
        if weights is None:
            return weighted_nll(nll, None, num_targets)
        if step_divisor is not None:
            return weighted_nll(nll, weights, step_divisor)
        if self.name == "rho1":
            return weighted_nll(nll, weights, self.keep * num_targets)
        if self.divides_by_weights:
            return self_normalized_nll(nll, weights, mask, num_targets)
        return weighted_nll(nll, weights, num_targets)


NTP = Objective("ntp")
