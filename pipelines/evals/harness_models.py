"""Model adapters for lm-evaluation-harness, on transformers or vLLM; ranks share the requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.models.huggingface import HFLM

from pipelines.errors import UserError
from pipelines.evals.generation import decode_plainly
from pipelines.run_dir import heartbeat

_Answer = Callable[[Sequence[Any]], list[Any]]


class SharedRequests:
    """Mixin for a harness model: every rank answers its share of the requests of each call.

    The harness is told that there is one rank, so that prompts with random few-shot examples do not
    depend on the number of ranks. All ranks get all answers. A batch that does not fit into memory
    is halved. After each batch, `on_share` gets the answered fraction of the current requests.
    """

    on_share: Callable[[float], None] = staticmethod(lambda share: None)
    num_requests = num_answered = 0
    rank, world_size = 0, 1

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().loglikelihood, requests)  # type: ignore[misc]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        return self._shared(super().generate_until, requests)  # type: ignore[misc]

    def _shared(self, answer: _Answer, requests: Sequence[Any]) -> list[Any]:
        if not dist.is_initialized():
            return self._in_batches_that_fit(answer, requests)
        world = dist.get_world_size()
        mine = requests[dist.get_rank() :: world]
        shares: list[list[Any]] = [[] for _ in range(world)]
        dist.all_gather_object(shares, self._in_batches_that_fit(answer, mine) if mine else [])
        answers: list[Any] = [None] * len(requests)
        for i, share in enumerate(shares):
            answers[i::world] = share
        return answers

    def _in_batches_that_fit(self, answer: _Answer, requests: Sequence[Any]) -> list[Any]:
        while True:
            self.num_requests, self.num_answered = len(requests), 0
            try:
                return answer(requests)
            except torch.OutOfMemoryError:
                if self.batch_size_per_gpu <= 1:
                    raise
                self.batch_size_per_gpu: int = self.batch_size_per_gpu // 2
                torch.cuda.empty_cache()


class TransformersModel(SharedRequests, HFLM):
    """A transformers model in this process, on this rank's device; it sorts requests by length.

    Its `generation_config.json` is ignored, see `decode_plainly`.
    """

    def __init__(self, pretrained: Any, **options: Any) -> None:
        decode_plainly(pretrained)
        super().__init__(pretrained=pretrained, **options)

    def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
        logits = super()._model_call(inps, *args, **kwargs)
        self._batch_done(len(inps))
        return logits

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = super()._model_generate(context, *args, **kwargs)
        self._batch_done(len(context))
        return tokens

    def _batch_done(self, count: int) -> None:
        heartbeat.tick()
        self.num_answered += count
        self.on_share(self.num_answered / max(1, self.num_requests))


def vllm_model(model_dir: Path, *, dtype: str, max_length: int) -> Any:
    """Load the model into vLLM, which does its own batching; a UserError if it is not installed."""
    try:
        from lm_eval.models.vllm_causallms import VLLM
    except ImportError as error:
        raise UserError(
            "eval.backend=vllm needs vLLM. Install it: pip install 'remit-flywheel[vllm]'."
        ) from error
    return type("VllmModel", (SharedRequests, VLLM), {})(
        pretrained=str(model_dir),
        dtype={"fp32": "float32", "bf16": "bfloat16"}[dtype],
        max_model_len=max_length or None,
        batch_size="auto",
    )
