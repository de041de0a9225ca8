"""The commands: parse, call, render."""

from __future__ import annotations

from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remit_cli import options

if TYPE_CHECKING:
    from pipelines.plan.stage import Stage
    from remit_cli.session import Session

app = typer.Typer(
    name="remit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="ReMiT: RL-guided mid-training, iterated, on DeepSpeed.\n\n"
    "Mid-train a base model again while your own RL-tuned model re-weights each token, post-train "
    "the result, and repeat.",
)


def _show_version(asked: bool) -> None:
    if asked:
        from pipelines import __version__

        typer.echo(f"remit {__version__}")
        raise typer.Exit


@app.callback()
def remit(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """The options of `remit` itself."""


STAGES = "Stages of the loop"
LOOP = "The loop"


def _execute(
    command: str,
    given: tuple[str, Path | None, int | None, Path | None, bool, list[str] | None],
    make_plan: Callable[[Session], list[Stage]],
    *,
    part: tuple[str | None, str | None] = (None, None),
    start: bool = True,
) -> None:
    """Plan a command and run its plan, or only the `part` (until, only) of it."""
    # Imported here so that `remit --help` starts fast.
    from remit_cli.session import Session, run_and_exit

    run_and_exit(Session(command, *given, *part), make_plan, start=start)


@app.command("pretrain-ckpt", rich_help_panel=STAGES)
def pretrain_ckpt(
    base: options.OptionalBase = None,
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    overrides: options.Overrides = None,
) -> None:
    """Train a base from scratch, or import an existing checkpoint.

    Example: remit pretrain-ckpt --run-dir runs/mine --base ~/models/OLMo-2-0425-1B
    """
    given = (config, run_dir, gpus, hostfile, json, overrides)
    _execute("pretrain-ckpt", given, lambda s: s.plans.pretrain_ckpt(s.config, base))


@app.command("mid-train", rich_help_panel=STAGES)
def mid_train(
    base: options.Base,
    ref: options.OptionalRef = None,
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    overrides: options.Overrides = None,
) -> None:
    """Mid-train a base; with --ref, ReMiT weights the tokens.

    Example: remit mid-train --base runs/mine/base --ref runs/mine/rl-tune --run-dir runs/mine
    """
    given = (config, run_dir, gpus, hostfile, json, overrides)
    _execute("mid-train", given, lambda s: s.plans.mid_train(s.config, base, ref))


@app.command("rl-tune", rich_help_panel=STAGES)
def rl_tune(
    base: options.Base,
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    overrides: options.Overrides = None,
) -> None:
    """Run only reinforcement learning with verifiable rewards (GRPO), on any checkpoint.

    Example: remit rl-tune --base runs/mine/post-train/20-sft --run-dir runs/mine
    """
    given = (config, run_dir, gpus, hostfile, json, overrides)
    _execute("rl-tune", given, lambda s: s.plans.rl_tune(s.config, base))


@app.command("post-train", rich_help_panel=STAGES)
def post_train(
    base: options.Base,
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    overrides: options.Overrides = None,
) -> None:
    """Run SFT, then DPO, then RLVR; each can be switched off.

    Example: remit post-train --base runs/mine/mid-train --run-dir runs/mine dpo.enabled=false
    """
    given = (config, run_dir, gpus, hostfile, json, overrides)
    _execute("post-train", given, lambda s: s.plans.post_train(s.config, base))


@app.command("score", rich_help_panel=STAGES)
def score(
    model: options.ScoredModel,
    base: options.TokenizerBase = None,
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    overrides: options.Overrides = None,
) -> None:
    """Precompute per-token log-probabilities of the mid-training data.

    `remit mid-train mid_train.reference=cached` reads them.

    Example: remit score --model runs/mine/rl-tune --base runs/mine/base --run-dir runs/mine
    """
    given = (config, run_dir, gpus, hostfile, json, overrides)
    _execute("score", given, lambda s: s.plans.score(s.config, model, base))


@app.command("eval", rich_help_panel=STAGES)
def evaluate(
    model: options.Model,
    suite: options.Suite = None,
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Ask through the chat template. Default: only for post-trained stages.",
        ),
    ] = None,
    overrides: options.Overrides = None,
) -> None:
    """Measure accuracy per task and benchmark with intervals, and held-out bits per byte.

    Example: remit eval --model runs/mine/mid-train --suite quick --run-dir runs/mine
    """
    named = [] if suite is None else [f"eval.suite={dumps(suite)}"]
    given = (config, run_dir, gpus, hostfile, json, [*named, *(overrides or [])])
    _execute("eval", given, lambda s: s.plans.evaluate(s.config, model, chat))


@app.command("contamination", rich_help_panel=STAGES)
def contamination(
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    overrides: options.Overrides = None,
) -> None:
    """Search every training source for the evaluation questions; show counts and examples.

    Example: remit contamination --config gsm8k-small --run-dir runs/mine --json
    """
    given = (config, run_dir, gpus, hostfile, json, overrides)
    _execute("contamination", given, lambda s: s.plans.contamination(s.config))


@app.command("flywheel", rich_help_panel=LOOP)
def flywheel(
    iterations: options.Iterations = None,
    base: options.OptionalBase = None,
    ref: options.OptionalRef = None,
    until: options.Until = None,
    only: options.Only = None,
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    overrides: options.Overrides = None,
) -> None:
    """Run the whole loop: base, the plain round 0, then rounds of ReMiT.

    Example: remit flywheel --iterations 3
    """
    given = (config, run_dir, gpus, hostfile, json, overrides)

    def make_plan(session: Session) -> list[Stage]:
        stages: list[Stage] = session.plans.whole_flywheel(session.config, iterations, base, ref)
        return stages

    _execute("flywheel", given, make_plan, part=(until, only))


@app.command("compare", rich_help_panel=LOOP)
def compare(
    base: options.ComparedBase = None,
    ref: options.OptionalRef = None,
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    overrides: options.Overrides = None,
) -> None:
    """Mid-train one base with every objective over several seeds, and tabulate the results.

    Example: remit compare --base runs/w/base --ref runs/w/round-0/40-rlvr seeds=3
    """
    given = (config, run_dir, gpus, hostfile, json, overrides)
    _execute("compare", given, lambda s: s.plan_compare(base, ref))


@app.command("analyze", rich_help_panel=LOOP)
def analyze(
    run: options.FlywheelRun, json: options.Json = False, overrides: options.Overrides = None
) -> None:
    """Measure what mid-training, token weights and RL changed in a flywheel, finished or not.

    Example: remit analyze runs/world
    """
    given = ("", run, None, None, json, overrides)
    _execute("analyze", given, lambda s: s.plan_analysis())


@app.command("plan", rich_help_panel=LOOP)
def plan(
    iterations: options.Iterations = None,
    base: options.OptionalBase = None,
    ref: options.OptionalRef = None,
    compare: options.Compared = False,
    config: options.Config = "world",
    run_dir: options.RunDirectory = None,
    gpus: options.Gpus = None,
    hostfile: options.Hostfile = None,
    json: options.Json = False,
    overrides: options.Overrides = None,
) -> None:
    """Show what `flywheel` or `compare` would run: stages, tokens, FLOPs, bytes, time.

    It starts nothing.

    Example: remit plan --config olmo2-1b --iterations 3
    """
    given = (config, run_dir, gpus, hostfile, json, overrides)
    if compare and iterations is not None:
        raise typer.BadParameter(
            "a comparison has no rounds: leave --iterations or --compare out",
            param_hint="--iterations",
        )

    def make_plan(session: Session) -> list[Stage]:
        if compare:
            return session.plan_compare(base, ref)
        stages: list[Stage] = session.plans.whole_flywheel(session.config, iterations, base, ref)
        return stages

    _execute("compare" if compare else "plan", given, make_plan, start=False)


@app.command(
    "launch",
    rich_help_panel=LOOP,
    # Options after the command's name belong to that command.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def launch(
    slurm: options.Slurm = False,
    per_stage: options.PerStage = False,
    output: options.ScriptFolder = None,
    json: options.Json = False,
    words: options.Words = None,
) -> None:
    """Write batch scripts for a command, which you read, edit and submit. It starts nothing.

    Example: remit launch --slurm --per-stage flywheel --config my.yaml --gpus 8
    """
    from remit_cli.scripts import write_batch_scripts

    if not slurm:
        raise typer.BadParameter("choose a scheduler: --slurm", param_hint="--slurm")
    group = typer.main.get_command(app)
    write_batch_scripts(group, words or [], per_stage=per_stage, output=output, json=json)


@app.command("doctor", rich_help_panel=LOOP)
def doctor(run_dir: options.RunDirectory = None, json: options.Json = False) -> None:
    """Check this machine: Python, torch, DeepSpeed, compiler, disk, ports, hub, sandbox, SLURM.

    Example: remit doctor
    """
    from remit_cli.session import show_doctor

    show_doctor(run_dir, json)


@app.command("status", rich_help_panel=LOOP)
def status(
    run: options.AnyRun,
    once: Annotated[
        bool, typer.Option("--once", help="Print once; do not follow a running run.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Show what a run has done; on a terminal, follow a running one.

    Ctrl-C closes the view, not the run.

    Example: remit status runs/world
    """
    from remit_cli.session import show_status

    show_status(run, json, once)


@app.command("report", rich_help_panel=LOOP)
def report(
    run: options.Reported,
    form: options.Format = "html",
    output: options.Output = None,
    arms: options.Arms = None,
    against: options.Against = None,
    seeds: options.SeedsShown = None,
    chart: options.Chart = None,
    no_text: options.NoText = False,
    open_page: options.OpenPage = False,
) -> None:
    """Write a report of a run: one page with results, tables, curves, weights and provenance.

    Example: remit report runs/world --open
    """
    from pipelines.report import Wanted
    from remit_cli.session import draw_report

    shown_arms, shown_seeds = (
        None if given is None else [name.strip() for name in given.split(",")]
        for given in (arms, seeds)
    )
    wanted = Wanted(form, not no_text, shown_arms, against, shown_seeds, chart)
    draw_report(run, wanted, output, open_page)
