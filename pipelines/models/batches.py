"""Run over items in batches that are as large as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from pipelines.run_dir import heartbeat

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    items: Sequence[Item],
    size: int,
    run: Callable[[Sequence[Item]], list[Result]],
    what: str,
    on_share: Callable[[float], None] = lambda share: None,
) -> list[Result]:
    """Apply `run`, one result per item, to batches of at most `size`; the results in order.

    If a batch does not fit into memory, the batch size is halved from there on, and
    torch.OutOfMemoryError is raised if one item alone does not fit. `what` names the items in the
    log, and `on_share` gets the fraction that is done after each batch.
    """
    results: list[Result] = []
    while len(results) < len(items):
        batch = items[len(results) : len(results) + size]
        try:
            results += run(batch)
            heartbeat.tick()
            on_share(len(results) / len(items))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            size = len(batch) // 2
            print(
                f"{len(batch)} {what} do not fit into memory: using batches of {size} from here on",
                flush=True,
            )
    return results
