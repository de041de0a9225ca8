"""Per-token scores of a causal language model, computed without storing all of its logits.

`TokenScores`, the autograd function, works in chunks and recomputes their logits in the backward
pass. `token_nll` and `token_kl` call it directly. `score_tokens_in_forward` makes a model return
these scores, computed inside the output head's own forward, where ZeRO-3 has gathered its weight.
Learner and reference run the same code, so that only their weights make a difference.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.errors import UserError

IGNORE = -100
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Head:
    """An output head and the hidden states that enter it, fp32 or bf16."""

    hidden: Tensor  # [tokens, dim]
    weight: Tensor  # [vocab, dim]
    bias: Tensor | None  # [vocab]

    def in_fp32(self, num_tokens: int) -> Head:
        """Return the head cut to its first `num_tokens` rows, ready for products in fp32.

        On a GPU, bf16 stays bf16, because tensor cores accumulate its products in fp32.
        """
        bias = None if self.bias is None else self.bias[:num_tokens].float()
        hidden, weight = self.hidden, self.weight[:num_tokens]
        if not _on_tensor_cores(weight):
            hidden, weight = hidden.float(), weight.float()
        return Head(hidden, weight, bias)

    def logits(self, rows: slice) -> Tensor:
        """Compute the fp32 logits [rows, vocab] of some rows."""
        logits = _product(self.hidden[rows], self.weight.T)
        return logits if self.bias is None else logits.add_(self.bias)


class TokenScores(torch.autograd.Function):
    """Computes the NLL of each label and, with a reference, KL(p_R || p_theta), both fp32 [tokens].

    One pass serves both. With g and h the incoming gradients of NLL and KL, the gradient of the
    logits is (g + h) softmax(logits) - g onehot(label) - h p_R.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        reference: Head | None,
        num_tokens: int,
        chunk_bytes: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Return NLL and KL; `token_nll` and `token_kl` describe the arguments."""
        head = Head(hidden, weight, bias).in_fp32(num_tokens)
        ref = None if reference is None else reference.in_fp32(num_tokens)
        chunks = list(_chunks(len(labels), num_tokens * (1 if ref is None else 2), chunk_bytes))
        targets = labels != IGNORE
        wanted = labels.where(targets, 0)[:, None]
        nll, normalizer = (torch.zeros_like(labels, dtype=torch.float32) for _ in range(2))
        kl = None if ref is None else torch.zeros_like(nll)
        logits = None
        for rows in chunks:
            logits = head.logits(rows)
            normalizer[rows] = logits.logsumexp(-1)
            nll[rows] = normalizer[rows] - logits.gather(1, wanted[rows])[:, 0]
            if ref is not None and kl is not None:
                ref_logprobs = ref.logits(rows).log_softmax(-1)
                logprobs = logits - normalizer[rows, None]
                kl[rows] = (ref_logprobs.exp() * (ref_logprobs - logprobs)).sum(-1)
        nll.masked_fill_(~targets, 0.0)
        if kl is not None:
            kl.masked_fill_(~targets, 0.0)
        # If all logits fit into one chunk they are saved, so a small model computes them once.
        kept = logits if len(chunks) == 1 else None
        ctx.save_for_backward(hidden, weight, bias, wanted, targets, normalizer, kept)
        ctx.chunks, ctx.reference, ctx.num_tokens = chunks, ref, num_tokens
        return nll, kl

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, nll_grad: Tensor, kl_grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden states, weight and bias, each in its input's dtype."""
        hidden, weight, bias, wanted, targets, normalizer, kept = ctx.saved_tensors
        head, ref = Head(hidden, weight, bias).in_fp32(ctx.num_tokens), ctx.reference
        nll_grad = nll_grad.masked_fill(~targets, 0.0)
        kl_grad = torch.zeros_like(nll_grad) if kl_grad is None else kl_grad
        kl_grad = kl_grad.masked_fill(~targets, 0.0)
        total = nll_grad + kl_grad
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        # Accumulated over the chunks in fp32: bf16 would round away small contributions.
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for rows in ctx.chunks:
            logits = head.logits(rows) if kept is None else kept.clone()
            grad = logits.sub_(normalizer[rows, None]).exp_().mul_(total[rows, None])
            grad.scatter_add_(1, wanted[rows], -nll_grad[rows, None])
            if ref is not None:
                grad.sub_(ref.logits(rows).softmax(-1).mul_(kl_grad[rows, None]))
            if hidden_grad is not None:
                hidden_grad[rows] = _product(grad, head.weight).to(hidden.dtype)
            if weight_grad is not None:
                _add_product(weight_grad[: ctx.num_tokens], grad.T, head.hidden[rows])
            if bias_grad is not None:
                bias_grad[: ctx.num_tokens] += grad.sum(0)
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            *[None] * 4,
        )


def token_nll(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Compute the negative log-likelihood of each label; its gradient is exact for every token.

    Args:
        hidden: [tokens, dim], fp32 or bf16.
        weight, bias: output head, [vocab, dim] and [vocab].
        labels: [tokens]; `IGNORE` at positions without a target.
        chunk_bytes: if the logits take more bytes than this, they are computed in chunks and
            recomputed in the backward pass; otherwise they are saved.

    Returns:
        fp32 [tokens]; 0 at positions without a target. Logits are accumulated in fp32.
    """
    return _scores(hidden, weight, bias, labels, None, len(weight), chunk_bytes)[0]


def token_kl(
    hidden: Tensor,
    weight: Tensor,
    reference: Head,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    num_tokens: int,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Compute the forward KL(p_R || p_theta) at each position, chunk by chunk; see `token_nll`.

    Args:
        reference: head and hidden states of the reference, of any width; it gets no gradient.
        mask: true where the position has a target, [tokens].
        num_tokens: number of token ids to which both logits are cut.

    Returns:
        fp32 [tokens]; 0 where the mask is false.
    """
    labels = torch.zeros_like(mask, dtype=torch.long).masked_fill(~mask, IGNORE)
    return _scores(hidden, weight, bias, labels, reference, num_tokens, chunk_bytes)[1]


def _scores(*args: Any) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = TokenScores.apply(*args)  # type: ignore[no-untyped-call]
    return found


def _chunks(num_rows: int, row_floats: int, chunk_bytes: int) -> Iterator[slice]:
    """Yield slices of rows whose fp32 logits take at most `chunk_bytes`; at least one row each."""
    size = max(1, chunk_bytes // (4 * row_floats))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def _on_tensor_cores(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype == torch.bfloat16


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Compute left @ right in fp32; `left` is cast to bf16 if `right` is bf16 on a GPU."""
    if _on_tensor_cores(right):
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    return left @ right


def _add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to target, in fp32."""
    if _on_tensor_cores(right):
        target += _product(left, right)
    else:
        target.addmm_(left, right)


def _head_forward(
    self: nn.Linear, hidden: Tensor, labels: Tensor | None = None, reference: Head | None = None
) -> Any:
    """Forward of an output head: fp32 logits or, given labels, the scores of `TokenScores`."""
    if labels is None:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(hidden.float(), self.weight.float(), bias)
    return _scores(
        hidden, self.weight, self.bias, labels, reference, self.num_scored_tokens, self.chunk_bytes
    )


def _scoring_forward(
    self: Any,
    input_ids: Tensor,
    shift_labels: Tensor | None = None,
    position_ids: Tensor | None = None,
    ref_hidden: Tensor | None = None,
    **_: Any,
) -> dict[str, Tensor]:
    # use_cache=False, since with a cache transformers drops the document mask of packed rows.
    hidden = self.base_model(
        input_ids=input_ids, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    if shift_labels is None:
        return {"hidden": hidden}
    reference = None
    if ref_hidden is not None:
        ref_head = self.ref_head[0]
        reference = Head(ref_hidden.flatten(0, 1), ref_head.weight, ref_head.bias)
    # Call the head as a module, so that ZeRO-3 gathers its weight in forward and in backward.
    nll, kl = self.get_output_embeddings()(
        hidden.flatten(0, 1), labels=shift_labels.flatten(), reference=reference
    )
    scores = {"nll": nll.view_as(shift_labels)}
    return scores if kl is None else {**scores, "kl": kl.view_as(shift_labels)}


def score_tokens_in_forward(
    model: Any, num_tokens: int, ref_head: Any | None = None, chunk_bytes: int = CHUNK_BYTES
) -> None:
    """Replace the forward of this model instance by (input_ids, shift_labels) -> {"nll"}.

    Without `shift_labels` the new forward returns {"hidden"}; given the reference's hidden states
    as `ref_hidden`, it adds {"kl"}. Scores have the shape of `shift_labels`, [batch, seq].

    Args:
        num_tokens: size of the base's tokenizer, to which all logits are cut.
        ref_head: output head of the reference, for the KL.
        chunk_bytes: bytes of logits computed at once, see `token_nll`.

    Raises:
        UserError: the model transforms its logits after the head, which is not implemented here.
    """
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, key, None) not in (None, 1, 1.0):
            raise UserError(f"models with {key} in their config.json cannot be mid-trained yet.")
    head = model.get_output_embeddings()
    head.num_scored_tokens, head.chunk_bytes = num_tokens, chunk_bytes
    head.forward = types.MethodType(_head_forward, head)
    # In a tuple, so that torch does not register the frozen head as a submodule of the learner.
    model.ref_head = (ref_head,)
    model.forward = types.MethodType(_scoring_forward, model)
