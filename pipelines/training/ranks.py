"""The ranks of a stage: what they wait for, exchange, and write together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

# Ranks wait at a barrier while the main rank packs a corpus, which may take days.
PATIENCE = timedelta(days=7)


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def barrier() -> None:
    """Wait for all ranks; returns at once without a process group."""
    if dist.is_initialized():
        dist.barrier()


def of_all_ranks(own: Any) -> list[Any]:
    """The objects of all ranks, in rank order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


@contextmanager
def without_engine() -> Iterator[tuple[int, int]]:
    """Join the process group of a stage without a DeepSpeed engine; rank and number of ranks."""
    rank, world = int(os.environ.get("RANK", "0")), world_size()
    if world > 1:
        dist.init_process_group("gloo", timeout=PATIENCE)
    yield rank, world
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to; at the end the main rank puts it in the place of `folder`."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    if is_main_rank():
        shutil.rmtree(temporary, ignore_errors=True)
    yield temporary
    if is_main_rank():
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
