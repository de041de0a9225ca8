"""The two files of a stop: the command writes `stop`, and the ranks answer with `stopped.json`."""

from __future__ import annotations

from pipelines.errors import Stopped
from pipelines.run_dir.paths import StageDir, read_json, write_json


def requested(stage_dir: StageDir) -> int:
    """The signal in the file `stop`; 0 if the file does not exist."""
    if not stage_dir.stop.is_file():
        return 0
    return int(read_json(stage_dir.stop, needs=("signal",))["signal"])


def write_stopped(stage_dir: StageDir, stopped: Stopped) -> None:
    """Record that the ranks have saved and stopped."""
    write_json(stage_dir.stopped, {"signal": stopped.signum, "step": stopped.step})
