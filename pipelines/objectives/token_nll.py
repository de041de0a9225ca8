"""Per-token negative log-likelihood of a causal language model, without holding its logits.

`score_tokens_in_forward` gives a model a forward that returns the NLL of `shift_labels`. It always
runs inside the model's own forward, so that a ZeRO-3 engine has the weights gathered; learner and
reference share it, so that their log-probabilities differ only by their weights.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipelines.errors import UserError

IGNORE = -100


def token_nll(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    *,
    num_tokens: int,
    chunk_bytes: int = 64 * 2**20,
) -> Tensor:
    """Negative log-likelihood of each label, in fp32.

    Args:
        head: maps hidden states to logits [.., vocab].
        hidden: [batch, seq, dim].
        labels: [batch, seq]; IGNORE where there is no target.
        num_tokens: logits beyond this many (padding of the head) are cut before the softmax.
        chunk_bytes: logits above this size are computed in chunks and again in backward.

    Returns:
        [batch, seq] fp32, 0 where there is no target.
    """
    flat_hidden, flat_labels = hidden.flatten(0, 1), labels.flatten()
    rows = max(1, chunk_bytes // (4 * num_tokens))
    if rows >= len(flat_labels):
        nll = _nll(head, flat_hidden, flat_labels, num_tokens)
    else:
        chunks = zip(flat_hidden.split(rows), flat_labels.split(rows), strict=True)
        nll = torch.cat(
            [checkpoint(_nll, head, h, y, num_tokens, use_reentrant=False) for h, y in chunks]
        )
    return nll.view_as(labels)


def _nll(head: nn.Module, hidden: Tensor, labels: Tensor, num_tokens: int) -> Tensor:
    logits = head(hidden)[:, :num_tokens].float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")


def _linear_fp32(self: nn.Linear, hidden: Tensor) -> Tensor:
    bias = None if self.bias is None else self.bias.float()
    return F.linear(hidden.float(), self.weight.float(), bias)


def _scoring_forward(
    self: Any,
    input_ids: Tensor,
    shift_labels: Tensor,
    position_ids: Tensor | None = None,
    **_: Any,
) -> dict[str, Tensor]:
    # use_cache=False always: with a cache transformers drops the document mask of packed rows.
    hidden = self.base_model(
        input_ids=input_ids, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    head = self.get_output_embeddings()
    return {"nll": token_nll(head, hidden, shift_labels, num_tokens=self.num_scored_tokens)}


def score_tokens_in_forward(model: Any, num_tokens: int) -> None:
    """Replace the forward of this model instance: (input_ids, shift_labels) -> {"nll"}.

    Args:
        model: a transformers causal language model.
        num_tokens: size of the base's tokenizer; learner and reference are cut to the same.

    Raises:
        UserError: the model changes its logits after the head in a way this forward lacks.
    """
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, key, None) not in (None, 1, 1.0):
            raise UserError(f"models with {key} in their config.json cannot be mid-trained yet.")
    head = model.get_output_embeddings()
    if head.weight.dtype != torch.float32:
        # bf16 logits are off by hundredths, and the weights saturate at |c| = 0.405.
        head.forward = types.MethodType(_linear_fp32, head)
    model.num_scored_tokens = num_tokens
    model.forward = types.MethodType(_scoring_forward, model)
