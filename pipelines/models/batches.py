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
    """Apply `run` to all items in batches, and return the results in order.

    If a batch does not fit into memory, the batch size is halved from there on.

    Args:
        size: largest number of items in a batch.
        run: maps a batch to one result per item.
        what: name of the items in the log.
        on_share: called after each batch with the fraction that is done, from 0 to 1.

    Raises:
        torch.OutOfMemoryError: one item alone does not fit.
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
