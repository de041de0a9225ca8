"""Per-token NLL: equal to the stock forward, in chunks too, packed and unpacked, fp32 for bf16."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.errors import UserError
from pipelines.objectives.token_nll import score_tokens_in_forward, token_nll


def small_model(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(shape | changes)))


def stock_nll(model: LlamaForCausalLM, input_ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), input_ids[:, 1:], reduction="none")


def shifted(input_ids: torch.Tensor) -> torch.Tensor:
    return F.pad(input_ids[:, 1:], (0, 1), value=-100)


@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_stock_forward(tied: bool) -> None:
    model = small_model(tie_word_embeddings=tied)
    ids = torch.randint(50, (3, 12))
    expected = stock_nll(model, ids)
    score_tokens_in_forward(model, num_tokens=50)
    nll = model(input_ids=ids, shift_labels=shifted(ids))["nll"]
    torch.testing.assert_close(nll[:, :-1], expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(nll[:, -1], torch.zeros(3))


@pytest.mark.parametrize("tied", [True, False])
def test_a_forward_in_chunks_has_the_same_values_and_gradients(tied: bool) -> None:
    ids, upstream = torch.randint(50, (3, 12)), torch.randn(3, 12)
    found = []
    for chunk_bytes in (1 << 20, 5 * 50 * 4):
        model = small_model(tie_word_embeddings=tied)
        score_tokens_in_forward(model, num_tokens=50, chunk_bytes=chunk_bytes)
        nll = model(input_ids=ids, shift_labels=shifted(ids))["nll"]
        (nll * upstream).sum().backward()
        found.append([nll.detach(), *(p.grad for p in model.parameters())])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-5)


def test_padding_of_the_head_does_not_count() -> None:
    padded, model = small_model(vocab_size=64), small_model()
    state = {k: v for k, v in padded.state_dict().items()}
    state["lm_head.weight"] = padded.lm_head.weight[:50]
    state["model.embed_tokens.weight"] = padded.model.embed_tokens.weight[:50]
    model.load_state_dict(state)
    ids = torch.randint(50, (2, 10))
    for m in (padded, model):
        score_tokens_in_forward(m, num_tokens=50)
    with torch.no_grad():
        first, second = (
            m(input_ids=ids, shift_labels=shifted(ids))["nll"] for m in (padded, model)
        )
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", [True, False], ids=["learner", "reference in eval mode"])
def test_packed_equals_unpacked(training: bool) -> None:
    model = small_model().train(training)
    assert model.config.use_cache, "the trap: a cache drops the document mask"
    score_tokens_in_forward(model, num_tokens=50)
    documents = [torch.randint(50, (1, n)) for n in (5, 9, 2)]
    packed = torch.cat(documents, dim=1)
    positions = torch.cat([torch.arange(d.shape[1]) for d in documents])[None]
    labels = torch.cat([shifted(d) for d in documents], dim=1)
    with torch.no_grad():
        together = model(input_ids=packed, position_ids=positions, shift_labels=labels)["nll"]
        alone = [model(input_ids=d, shift_labels=shifted(d))["nll"] for d in documents]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=0)
    unmasked = model(input_ids=packed, shift_labels=labels)["nll"]
    assert (unmasked - together).abs().max() > 1e-3


def test_bf16_weights_give_fp32_log_probs_of_fp32_logits() -> None:
    model = small_model().to(torch.bfloat16)
    ids = torch.randint(50, (2, 12))
    with torch.no_grad():
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.float()
        logits = hidden @ model.lm_head.weight.float().T
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    score_tokens_in_forward(model, num_tokens=50)
    nll = model(input_ids=ids, shift_labels=shifted(ids))["nll"]
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll[:, :-1], expected, atol=1e-5, rtol=0)


def bf16_tensors() -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = (12, 16), (50, 16)
    return [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_bf16_scores_are_those_of_fp32_products() -> None:
    rows, weight = (tensor.detach().cuda().requires_grad_() for tensor in bf16_tensors())
    exact = [tensor.detach().double().requires_grad_() for tensor in (rows, weight)]
    labels = torch.arange(12, device="cuda")
    found = token_nll(rows, weight, labels, chunk_bytes=4 * 50 * 5)
    expected = F.cross_entropy(exact[0] @ exact[1].T, labels, reduction="none")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    expected.sum().backward()
    for ours, wanted in zip((rows, weight), exact, strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.double(), wanted.grad, atol=2e-2, rtol=2e-2)


def test_a_model_that_changes_its_logits_is_refused() -> None:
    model = small_model()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(UserError, match="final_logit_softcapping"):
        score_tokens_in_forward(model, num_tokens=50)


def test_no_more_logits_at_a_time_than_chunk_bytes() -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default:
                self.numel = max(self.numel, found.numel())
            return found

    # 23 rows of 50 logits, five at a time.
    rows, weight = torch.randn(23, 16), torch.randn(50, 16)
    labels = torch.randint(50, (23,))
    with Largest() as largest:
        token_nll(rows, weight, labels, chunk_bytes=5 * 50 * 4)
    assert largest.numel == 5 * 50
