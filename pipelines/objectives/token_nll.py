"""Per-token scores of a causal language model, without holding its logits.

`token_nll` is the kernel: negative log-likelihoods in fp32 from hidden states, in chunks whose
logits are computed again in backward. `token_kl` is the same for the divergence from a reference.
`score_tokens_in_forward` gives a model a forward that returns them, so that they always run inside
the model's own forward, where a ZeRO-3 engine has the weights gathered; learner and reference share
it, so that their log-probabilities differ only by their weights.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipelines.errors import UserError

IGNORE = -100
CHUNK_BYTES = 64 * 2**20

# Hidden states [tokens, dim] -> fp32 logits [tokens, vocab].
Head = Callable[[Tensor], Tensor]


def token_nll(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = IGNORE,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Negative log-likelihood of each label; exact under any gradient per token.

    Args:
        hidden: [tokens, dim], fp32 or bf16.
        weight: of the output head, [vocab, dim].
        labels: [tokens]; `ignore_index` where there is no target.
        bias: of the output head, [vocab].
        chunk_bytes: logits above this many bytes are computed in chunks, and again in backward;
            below it they are kept.

    Returns:
        [tokens] fp32, 0 where there is no target. Logits are accumulated in fp32.
    """

    def nll(rows: Tensor, targets: Tensor) -> Tensor:
        return _nll(linear_fp32(rows, weight, bias), targets, ignore_index)

    return _in_chunks(nll, len(weight), chunk_bytes, hidden, labels)


def token_kl(
    head: Head,
    hidden: Tensor,
    ref_head: Head,
    ref_hidden: Tensor,
    mask: Tensor,
    *,
    num_tokens: int,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Forward KL(p_R || p_theta) at each position; never holds the logits of two whole models.

    Args:
        head, ref_head: map hidden states to fp32 logits; cut to the first `num_tokens`.
        hidden: of the learner, [tokens, dim].
        ref_hidden: of the reference, [tokens, ref_dim]; gets no gradient.
        mask: true where the position is a target, [tokens].

    Returns:
        [tokens] fp32, 0 where the mask is false.
    """

    def kl(rows: Tensor, ref_rows: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            ref_logprobs = ref_head(ref_rows)[:, :num_tokens].log_softmax(-1)
        logprobs = head(rows)[:, :num_tokens].log_softmax(-1)
        divergence = (ref_logprobs.exp() * (ref_logprobs - logprobs)).sum(-1)
        return divergence.masked_fill(~targets, 0.0)

    # Two models' logits lie side by side.
    return _in_chunks(kl, 2 * num_tokens, chunk_bytes, hidden, ref_hidden.detach(), mask)


def _nll(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")


def _in_chunks(
    function: Callable[..., Tensor], row_floats: int, chunk_bytes: int, *tensors: Tensor
) -> Tensor:
    """`function` over rows of `tensors`, at most `chunk_bytes` of fp32 logits at a time."""
    rows = max(1, chunk_bytes // (4 * row_floats))
    if rows >= len(tensors[0]):
        return function(*tensors)
    chunks = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])


class Bf16Head(torch.autograd.Function):
    """A linear map of bf16 tensors whose result is accumulated and kept in fp32.

    On a GPU as fast as a bf16 product; casting both sides to fp32 first would leave the tensor
    cores and copy the weight. The gradient of the logits is rounded to bf16, as the products that
    it enters are.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        """rows [tokens, dim], weight [vocab, dim] -> fp32 [tokens, vocab]."""
        ctx.save_for_backward(rows, weight)
        if rows.is_cuda:
            return torch.mm(rows, weight.T, out_dtype=torch.float32)
        return rows.float() @ weight.float().T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of rows and weight, in their type."""
        rows, weight = ctx.saved_tensors
        grad = grad.to(weight.dtype)
        return grad @ weight, grad.T @ rows


def linear_fp32(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows @ weight.T + bias in fp32; rows [..., dim], weight [vocab, dim]."""
    bias = None if bias is None else bias.float()
    # torch.mm can give fp32 for bf16 on a GPU only, and without a gradient.
    if rows.is_cuda and rows.dtype == torch.bfloat16:
        flat: Tensor = Bf16Head.apply(rows.flatten(0, -2), weight)  # type: ignore[no-untyped-call]
        logits: Tensor = flat.unflatten(0, rows.shape[:-1])
        return logits if bias is None else logits + bias
    return F.linear(rows.float(), weight.float(), bias)


def _forward_fp32(self: nn.Linear, hidden: Tensor) -> Tensor:
    return linear_fp32(hidden, self.weight, self.bias)


def _scoring_forward(
    self: Any,
    input_ids: Tensor,
    shift_labels: Tensor | None = None,
    position_ids: Tensor | None = None,
    ref_hidden: Tensor | None = None,
    **_: Any,
) -> dict[str, Tensor]:
    # use_cache=False always: with a cache transformers drops the document mask of packed rows.
    hidden = self.base_model(
        input_ids=input_ids, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    if shift_labels is None:
        return {"hidden": hidden}
    # Through the head as a module, so that ZeRO-3 gathers it again in backward.
    head, flat_labels = self.get_output_embeddings(), shift_labels.flatten()

    def nll(rows: Tensor, targets: Tensor) -> Tensor:
        return _nll(head(rows)[:, : self.num_scored_tokens].float(), targets)

    scores = {
        "nll": _in_chunks(
            nll, self.num_scored_tokens, self.chunk_bytes, hidden.flatten(0, 1), flat_labels
        ).view_as(shift_labels)
    }
    if ref_hidden is not None:
        scores["kl"] = token_kl(
            head, hidden.flatten(0, 1), self.ref_head[0], ref_hidden.flatten(0, 1),
            flat_labels != IGNORE, num_tokens=self.num_scored_tokens,
            chunk_bytes=self.chunk_bytes,
        ).view_as(shift_labels)  # fmt: skip
    return scores


def score_tokens_in_forward(
    model: Any, num_tokens: int, ref_head: Any | None = None, chunk_bytes: int = CHUNK_BYTES
) -> None:
    """Replace the forward of this model instance: (input_ids, shift_labels) -> {"nll"}.

    Without `shift_labels` it returns {"hidden"}; with a reference's `ref_hidden` it adds {"kl"}.

    Args:
        model: a transformers causal language model.
        num_tokens: size of the base's tokenizer; learner and reference are cut to the same.
        ref_head: the output head of the reference, for the KL.
        chunk_bytes: logits held at once, see `token_nll`.

    Raises:
        UserError: the model changes its logits after the head in a way this forward lacks.
    """
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, key, None) not in (None, 1, 1.0):
            raise UserError(f"models with {key} in their config.json cannot be mid-trained yet.")
    head = model.get_output_embeddings()
    if head.weight.dtype != torch.float32:
        # bf16 logits are off by hundredths, and the weights saturate at |c| = 0.405.
        head.forward = types.MethodType(_forward_fp32, head)
    model.num_scored_tokens = num_tokens
    model.chunk_bytes = chunk_bytes
    # In a tuple, so that the frozen head is no module of the learner.
    model.ref_head = (ref_head,)
    model.forward = types.MethodType(_scoring_forward, model)
