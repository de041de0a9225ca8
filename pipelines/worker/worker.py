"""The worker: runs one rank of a stage by its `config.yaml`; rank 0 writes `result.json` last."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipelines.errors import WRONG_INPUT_CODE, Stopped, UserError
from pipelines.machine.process import die_with_command, die_with_parent
from pipelines.machine.signals import unblock_signals
from pipelines.models.checkpoint import content_hash
from pipelines.run_dir import heartbeat
from pipelines.run_dir.disk import explain_failed_writes
from pipelines.run_dir.fail_points import fail_point
from pipelines.run_dir.job import read_job
from pipelines.run_dir.paths import StageDir, hold_as_rank, write_json
from pipelines.run_dir.resume_state import package_versions


def run_job(stage_dir: StageDir) -> None:
    """Run this rank's part of a stage to its end."""
    job = read_job(stage_dir)
    hold_as_rank(job.run)
    started = time.time()
    result = importlib.import_module(job.module).run(job)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    if stage_dir.model.is_dir():
        result["model_sha256"] = content_hash(stage_dir.model)
    fail_point("before the result")
    facts = {
        "stage": job.name,
        "kind": job.kind,
        "identity": job.identity,
        "seconds": round(time.time() - started, 2),
        "environment": environment(),
    }
    write_json(stage_dir.result, facts | result)
    fail_point("after the result")


def environment() -> dict[str, Any]:
    """Facts that can change the last bits of a result and are not part of its identity."""
    keys = ("WORLD_SIZE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "DS_ACCELERATOR")
    return {
        "python": sys.version.split()[0],
        "versions": package_versions(),
        **{key: os.environ[key] for key in keys if key in os.environ},
    }


def run_rank(stage_dir: StageDir) -> int:
    """Run this rank's part of a stage; returns its exit code, 0 also if it saved and stopped."""
    rank = int(os.environ.get("RANK", "0"))
    heartbeat.begin(stage_dir, rank)
    try:
        with explain_failed_writes(stage_dir.root):
            run_job(stage_dir)
    except Stopped as stopped:
        if rank == 0:
            print(stopped, flush=True)
            write_json(stage_dir.stopped, {"signal": stopped.signum, "step": stopped.step})
    except UserError as error:
        # The log may not fit on a full disk, so the exit code reports the error too.
        with contextlib.suppress(OSError):
            print(f"error: {error}", flush=True)
        return WRONG_INPUT_CODE
    return 0


def main() -> None:
    unblock_signals()
    die_with_parent()
    if len(sys.argv) > 2:
        die_with_command(json.loads(sys.argv[2]))
    sys.exit(run_rank(StageDir(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
