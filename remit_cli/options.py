"""The options that commands share. A test freezes the list: everything else is config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _path(text: str) -> Path:
    """Parse a path; refuse an empty one, which an unset variable gives and Path reads as `.`."""
    if not text:
        raise typer.BadParameter("the path is empty (is a variable not set?).")
    return Path(text)


Config = Annotated[
    str, typer.Option("--config", help="Recipe: a name from configs/ or a path to a YAML file.")
]
RunDirectory = Annotated[
    Path | None,
    typer.Option(
        "--run-dir", parser=_path, help="Folder for all results. Default: runs/<config name>."
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", help="Processes per node, one per GPU (without GPUs, on CPU)."),
]
Hostfile = Annotated[
    Path | None, typer.Option("--hostfile", help="DeepSpeed hostfile, for several nodes.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")
]
Base = Annotated[
    str, typer.Option("--base", help="CKPT: a model folder, a stage folder, or org/name@revision.")
]
OptionalBase = Annotated[
    str | None, typer.Option("--base", help="CKPT to import instead of training from scratch.")
]
OptionalRef = Annotated[
    str | None, typer.Option("--ref", help="Reference model (CKPT of the RL-tuned model).")
]
FlywheelRun = Annotated[
    Path, typer.Argument(parser=_path, metavar="RUN", help="Run directory of a flywheel.")
]
AnyRun = Annotated[Path, typer.Argument(parser=_path, metavar="RUN", help="Run directory.")]
Reported = Annotated[
    list[Path],
    typer.Argument(
        parser=_path,
        metavar="RUN",
        help="Run directory, or one or more rows.jsonl files of comparisons.",
    ),
]
ComparedBase = Annotated[
    str | None, typer.Option("--base", help="CKPT of the base model that all arms start from.")
]
Model = Annotated[str, typer.Option("--model", help="CKPT to evaluate.")]
Suite = Annotated[
    str | None,
    typer.Option(
        "--suite", help="What to measure: paper10, quick, world, or a file. Default: the recipe's."
    ),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Ask through the chat template. Default: only for post-trained stages.",
    ),
]
ScoredModel = Annotated[
    str, typer.Option("--model", help="CKPT of the model that scores the data.")
]
TokenizerBase = Annotated[
    str | None,
    typer.Option("--base", help="CKPT whose tokenizer packs the data. Default: the scored model."),
]
Iterations = Annotated[
    int | None,
    typer.Option(
        "--iterations", help="Rounds after round 0. Default: 3, unless the recipe says otherwise."
    ),
]
Until = Annotated[
    str | None,
    typer.Option("--until", help="Stop after this stage (round-0/20-sft) or part (round-0)."),
]
Only = Annotated[
    str | None,
    typer.Option("--only", help="Run only this stage or part; its inputs must be complete."),
]
Compared = Annotated[bool, typer.Option("--compare", help="Plan `compare` instead of `flywheel`.")]
Slurm = Annotated[bool, typer.Option("--slurm", help="Write scripts for SLURM's sbatch.")]
PerStage = Annotated[
    bool, typer.Option("--per-stage", help="Write one job per stage of flywheel, and submit.sh.")
]
ScriptFolder = Annotated[
    Path | None,
    typer.Option("--output", parser=_path, help="Folder for the scripts. Default: RUN/slurm."),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[COMMAND ...]", help="Command to run, without `remit`: flywheel ..."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Config overrides, such as mid_train.remit.eps=0.1."
    ),
]
Once = Annotated[bool, typer.Option("--once", help="Print once; do not follow a running run.")]
Format = Annotated[str, typer.Option("--format", help="html, svg (only the charts), md or json.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        parser=_path,
        help="Output file. Default: RUN/report/index.html, .svg, .md or .json; for rows, next to "
        "the first file.",
    ),
]
Arms = Annotated[
    str | None,
    typer.Option("--arms", help="Arms of a comparison to show, such as ntp,remit. Default: all."),
]
Against = Annotated[
    str | None,
    typer.Option("--against", help="Baseline arm. Default: the one that each arm names."),
]
SeedsShown = Annotated[
    str | None,
    typer.Option("--seeds", help="Seeds of a comparison to show, such as 10,11. Default: all."),
]
Chart = Annotated[
    str | None, typer.Option("--chart", help="With svg: only charts with this text in their title.")
]
NoText = Annotated[
    bool, typer.Option("--no-text", help="Leave training text, tokens and questions out.")
]
OpenPage = Annotated[bool, typer.Option("--open", help="Open the report in the browser.")]
