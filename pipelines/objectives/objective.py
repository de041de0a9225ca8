"""An objective of mid-training: one arm of the paper's table, from scores to the loss of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipelines.objectives.losses import distillation, self_normalized_nll, weighted_nll
from pipelines.objectives.weights import Center, WeightMap, remit_weights, rho1_weights
from pipelines.recipe.schema import MidTrainConfig


@dataclass(frozen=True)
class Objective:
    """What turns per-token scores of learner and reference into a loss.

    Attributes:
        name: `ntp`, `remit`, `rho1` or `kd`.
        eps, center, map, standardize, detach: see `remit_weights`.
        divisor: of ReMiT's loss: the number of targets, or the sum of the weights.
        scope: what `center="batch"`, `divisor="weights"` and RHO-1's ranking see: one rank's
            micro-batch, or the whole step.
        keep: share of the targets that RHO-1 trains on.
        alpha: share of the KL term of KD.
    """

    name: Literal["ntp", "remit", "rho1", "kd"]
    eps: float = 0.2
    center: Center = "sequence"
    map: WeightMap = "sigmoid"
    standardize: bool = False
    detach: bool = True
    divisor: Literal["targets", "weights"] = "targets"
    scope: Literal["micro_batch", "step"] = "micro_batch"
    keep: float = 0.6
    alpha: float = 0.5

    @classmethod
    def of(cls, settings: MidTrainConfig) -> Objective:
        """The objective that a recipe (with `auto` decided) describes."""
        assert settings.objective != "auto"
        return cls(
            # MiniPLM chooses sequences, and trains on them plainly.
            "ntp" if settings.objective == "miniplm" else settings.objective,
            eps=settings.remit.eps,
            center=settings.remit.center,
            map=settings.remit.map,
            standardize=settings.remit.standardize,
            detach=settings.remit.detach,
            divisor=settings.remit.divisor,
            scope=settings.scope,
            keep=settings.rho1.keep,
            alpha=settings.kd.alpha,
        )

    @property
    def uses_weights(self) -> bool:
        """Whether it weights tokens by a reference's log-probabilities."""
        return self.name in ("remit", "rho1")

    @property
    def uses_kl(self) -> bool:
        """Whether it needs the reference's whole distribution."""
        return self.name == "kd"

    @property
    def divides_by_weights(self) -> bool:
        """Whether the divisor of a step is known only from the weights of the whole step."""
        return self.name == "rho1" or (self.name == "remit" and self.divisor == "weights")

    def weights(
        self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, documents: Tensor | None
    ) -> Tensor:
        """Token weights [batch, seq] from log-probabilities [batch, seq]."""
        if self.name == "rho1":
            return rho1_weights(logprobs, ref_logprobs, mask, k=self.keep)
        return remit_weights(
            logprobs, ref_logprobs, mask, eps=self.eps, center=self.center, map=self.map,
            standardize=self.standardize, detach=self.detach, documents=documents,
        )  # fmt: skip

    def loss(
        self,
        scores: dict[str, Tensor],
        weights: Tensor | None,
        mask: Tensor,
        num_targets: Tensor | float,
        step_divisor: float | None = None,
    ) -> Tensor:
        """What one micro-batch adds to the loss of the step.

        Args:
            scores: `nll` and, for KD, `kl`, [batch, seq].
            weights: of this micro-batch, [batch, seq]; None without a reference.
            mask: true where the position is a target, [batch, seq].
            num_targets: targets of the whole step, over all ranks and micro-batches.
            step_divisor: sum of the weights of the whole step, where that is what divides and
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
