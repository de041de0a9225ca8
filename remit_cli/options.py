"""The options that commands share. Few, and frozen by a test: everything else is config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _path(text: str) -> Path:
    """A path that was given; the empty text of an unset variable would be the current folder."""
    if not text:
        raise typer.BadParameter("the empty text names no path (is a variable not set?).")
    return Path(text)


Config = Annotated[
    str, typer.Option("--config", help="A recipe: a name of configs/ or a path to a YAML file.")
]
RunDirectory = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        parser=_path,
        help="Where everything is written. Default: runs/<config name>.",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", help="Ranks on this machine: GPUs, or processes where there are none."),
]
Hostfile = Annotated[
    Path | None, typer.Option("--hostfile", help="DeepSpeed hostfile, for several machines.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")
]
Base = Annotated[
    str, typer.Option("--base", help="CKPT: a model folder, a stage folder, or org/name@revision.")
]
OptionalBase = Annotated[
    str | None, typer.Option("--base", help="CKPT to adopt instead of training from scratch.")
]
OptionalRef = Annotated[
    str | None, typer.Option("--ref", help="CKPT of the RL-tuned model that weights the tokens.")
]
FlywheelRun = Annotated[
    Path, typer.Argument(parser=_path, metavar="RUN", help="The run directory of a flywheel.")
]
AnyRun = Annotated[Path, typer.Argument(parser=_path, metavar="RUN", help="A run directory.")]
Reported = Annotated[
    list[Path],
    typer.Argument(
        parser=_path,
        metavar="RUN",
        help="A run directory; or rows of comparisons, one or more rows.jsonl.",
    ),
]
ComparedBase = Annotated[
    str | None, typer.Option("--base", help="CKPT of the base that all arms start from.")
]
Model = Annotated[str, typer.Option("--model", help="CKPT to evaluate.")]
Suite = Annotated[
    str | None,
    typer.Option(
        "--suite", help="What to measure: paper10, quick, world, or a file. Default: the recipe's."
    ),
]
ScoredModel = Annotated[str, typer.Option("--model", help="CKPT whose log-probabilities to keep.")]
TokenizerBase = Annotated[
    str | None,
    typer.Option("--base", help="CKPT whose tokenizer packs the text. Default: the model's own."),
]
Iterations = Annotated[
    int | None, typer.Option("--iterations", help="Rounds after round 0. Default: the recipe's, 3.")
]
Until = Annotated[
    str | None,
    typer.Option("--until", help="Stop after this stage (round-0/20-sft) or part (round-0)."),
]
Only = Annotated[
    str | None,
    typer.Option("--only", help="Run this stage or part alone; its inputs must be complete."),
]
Compared = Annotated[
    bool, typer.Option("--compare", help="What `compare` would run, in place of `flywheel`.")
]
Slurm = Annotated[bool, typer.Option("--slurm", help="Scripts for SLURM's sbatch.")]
PerStage = Annotated[
    bool, typer.Option("--per-stage", help="A job for each stage of flywheel, and submit.sh.")
]
ScriptFolder = Annotated[
    Path | None,
    typer.Option("--output", parser=_path, help="Folder of the scripts. Default: RUN/slurm."),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[COMMAND ...]", help="What to run, as after remit: flywheel ..."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Config overrides, such as mid_train.remit.eps=0.1."
    ),
]
Format = Annotated[str, typer.Option("--format", help="html, svg (the charts alone), md or json.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        parser=_path,
        help="Where to write. Default: RUN/report/index.html, .svg, .md or .json; of rows, beside "
        "the file.",
    ),
]
Arms = Annotated[
    str | None,
    typer.Option("--arms", help="Arms of a comparison to show, as ntp,remit. Default: all."),
]
Against = Annotated[
    str | None,
    typer.Option("--against", help="The arm that all others of a comparison are held against."),
]
SeedsShown = Annotated[
    str | None,
    typer.Option("--seeds", help="Seeds of a comparison to show, as 10,11. Default: all."),
]
Chart = Annotated[
    str | None, typer.Option("--chart", help="Of svg: only charts with this text in their title.")
]
NoText = Annotated[
    bool, typer.Option("--no-text", help="Leave training text, tokens and questions out.")
]
OpenPage = Annotated[bool, typer.Option("--open", help="Open it in the browser.")]
