"""Batches as large as memory takes."""

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
    """What `run` gives for each item, in their order.

    A batch that does not fit into memory is halved, and so are those after it.

    Args:
        size: items in a batch at the most.
        run: of a batch to one result for each item.
        what: the items' name in the log.
        on_share: told after each batch the part that is done, from 0 to 1.

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
            print(f"{len(batch)} {what} do not fit: {size} from here on", flush=True)
    return results
