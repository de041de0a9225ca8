"""Write `traces.json` anew: `python tests/golden/record.py`, where a change is meant to change it.

Six digits of one rank and one thread; the numbers are those of this machine's processor.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from traces import RUNS, machine, trace, write

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def main() -> None:
    recorded = {"machine": machine(threads=1)}
    with tempfile.TemporaryDirectory() as folder:
        for name, args in RUNS.items():
            subprocess.run(
                [sys.executable, "-m", "remit_cli", *args, "--run-dir", name],
                cwd=folder, env=os.environ | ENVIRONMENT, check=True,
            )  # fmt: skip
            recorded[name] = trace(Path(folder) / name)
    write(recorded)


if __name__ == "__main__":
    main()
