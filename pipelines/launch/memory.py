"""Detect that a stage ran out of memory, and say which settings lower its memory use."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

from pipelines.machine.signals import signal_of
from pipelines.plan.kinds import kind_of
from pipelines.recipe.schema import Config, RlvrConfig, TrainConfig

GPU_WORDS = re.compile(r"OutOfMemoryError|CUDA out of memory|CUDNN_STATUS_ALLOC_FAILED")
CPU_WORDS = re.compile(
    r"DefaultCPUAllocator: (?:can't|not enough)|std::bad_alloc|^MemoryError|Cannot allocate memory"
    r"|ArrayMemoryError|mmap .*memory",
    re.MULTILINE,
)


def kernel_kills() -> int:
    """Number of processes of this cgroup that the kernel's OOM killer has killed; 0 if unknown."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
        events = (Path("/sys/fs/cgroup") / own.lstrip("/") / "memory.events").read_text()
    except (OSError, StopIteration):
        return 0
    found = re.search(r"^oom_kill (\d+)", events, re.MULTILINE)
    return int(found[1]) if found else 0


def shortage(returncode: int, log: str, kills: int) -> str:
    """How a failed stage ran out of memory, as text; empty if there is no sign of it.

    `log` is that of this start; `kills` is the increase of `kernel_kills` while the stage ran. The
    launcher itself has not killed the stage.
    """
    if GPU_WORDS.search(log):
        return "out of GPU memory"
    if CPU_WORDS.search(log):
        return "out of memory"
    if signal_of(returncode) != signal.SIGKILL:
        return ""
    if kills:
        return "out of memory: the kernel killed a rank"
    return "a rank was killed by SIGKILL, as the kernel does when memory runs out"


def smaller(kind: str, config: Config, *, on_gpu: bool) -> str:
    """Settings that lower the memory use of a stage, with their current values."""
    row, found = kind_of(kind), []
    section = "score" if kind == "score" else row.section
    settings: Any = getattr(config, section)
    several = config.launch.gpus > 1 or bool(config.launch.hostfile)
    if isinstance(settings, TrainConfig):
        found.append(f"a smaller {section}.micro_batch_size (now {settings.micro_batch_size})")
        if settings.zero_stage < 3 and several:
            found.append(f"a higher {section}.zero_stage (now {settings.zero_stage})")
        # Offloading moves the optimizer from the GPU to the memory of the CPU.
        if settings.offload_optimizer != on_gpu:
            found.append(f"{section}.offload_optimizer={str(on_gpu).lower()}")
        if not settings.gradient_checkpointing:
            found.append(f"{section}.gradient_checkpointing=true")
    elif kind != "contamination":
        found.append(f"a smaller {section}.batch_size (now {settings.batch_size})")
    if "document_mask" in row.identity and not row.asks:
        found.append(f"a smaller chunk_bytes (now {config.chunk_bytes})")
    if isinstance(settings, RlvrConfig):
        found.append(f"a smaller rlvr.max_completion_length (now {settings.max_completion_length})")
    if several and not on_gpu:
        found.append("fewer processes per node (--gpus)")
    return ", ".join(found) or "fewer sources"
