"""Which version of remit made a run directory, and whether this one can read it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from pipelines import __version__
from pipelines.errors import DamagedFile, UserError
from pipelines.run_dir import ledger
from pipelines.run_dir.paths import RunDir, read_yaml

# Raised when an older run directory cannot be read any more: 2 has the recipe keys of remit 0.2.
LAYOUT = 2
# In every config before 0.2, and in none since.
_FORMER_KEY = "context_length"


def made_by() -> dict[str, Any]:
    """What a plan and the config of a stage say of the version that wrote them."""
    return {"remit": __version__, "layout": LAYOUT}


def check_layout(run: RunDir) -> None:
    """Refuse a run directory that another version made and this one cannot read.

    The first plan or, without a plan, the first config of a stage that can be read decides.

    Raises:
        UserError: names the folder, the version, and what can be done.
    """
    names = dict.fromkeys(entry["stage"] for entry in ledger.read(run.ledger))
    configs = (run.stage(name).config for name in names)
    for path in filter(Path.is_file, (run.flywheel_plan, run.compared_plan, *configs)):
        # Whoever reads a damaged file for its values names it.
        with contextlib.suppress(DamagedFile, FileNotFoundError):
            if (version := _other_version(read_yaml(path, needs=("config",)))) is not None:
                raise UserError(
                    f"{run.root} was made by remit {version}, and this is remit {__version__}, "
                    "which cannot read it. Start a new run directory with --run-dir; the models in "
                    f"the old one can still be given, such as --base {run.root}/base."
                )
            return


def _other_version(written: dict[str, Any]) -> str | None:
    """The version in words, None for one whose files are like those of this one."""
    layout, config = written.get("layout"), written["config"]
    if layout not in (LAYOUT, None):
        return str(written.get("remit", "of another version"))
    former = layout is None and isinstance(config, dict) and _FORMER_KEY in config
    return "before 0.2" if former else None
