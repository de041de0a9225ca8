"""The commands: parse, call, render."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from remit_cli import options

if TYPE_CHECKING:
    from pipelines.plan.stage import Stage
    from remit_cli.session import Session

    Plan = Callable[[], list[Stage]]
    Planner = Callable[..., Plan]

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


def _planned(name: str, panel: str, *, start: bool = True) -> Callable[[Planner], Planner]:
    """Make a function the command `name`, which runs a plan or, without `start`, shows it.

    The function gets a session before its recipe is loaded and the options that only this command
    has, and returns what plans the stages. All commands share the options of `run`.
    """

    def register(planner: Planner) -> Planner:
        def run(
            config: options.Config = "world",
            run_dir: options.RunDirectory = None,
            gpus: options.Gpus = None,
            hostfile: options.Hostfile = None,
            json: options.Json = False,
            overrides: options.Overrides = None,
            **own: Any,
        ) -> None:
            # Imported here so that `remit --help` starts fast.
            from remit_cli.session import Session, run_and_exit

            session = Session(name, config, run_dir, gpus, hostfile, json, overrides or [])
            run_and_exit(session, planner(session, **own), start=start)

        # Typer makes options of the parameters that it finds here.
        shown = [*_parameters(planner)[1:], *_parameters(run)[:-1]]
        run.__dict__["__signature__"] = Signature(shown)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        run.__doc__ = planner.__doc__
        app.command(name, rich_help_panel=panel)(run)
        return planner

    return register


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a function, with types instead of their names."""
    # Session and Plan are not imported, so that `remit --help` starts fast.
    unknown = {"Session": Any, "Plan": Any}
    types = get_type_hints(function, localns=unknown, include_extras=True)
    found = signature(function).parameters.values()
    return [parameter.replace(annotation=types[parameter.name]) for parameter in found]


@_planned("pretrain-ckpt", STAGES)
def pretrain_ckpt(session: Session, base: options.OptionalBase = None) -> Plan:
    """Train a base from scratch, or import an existing checkpoint.

    Example: remit pretrain-ckpt --run-dir runs/mine --base ~/models/OLMo-2-0425-1B
    """
    return lambda: session.plans.pretrain_ckpt(session.config, base)


@_planned("mid-train", STAGES)
def mid_train(session: Session, base: options.Base, ref: options.OptionalRef = None) -> Plan:
    """Mid-train a base; with --ref, ReMiT weights the tokens.

    Example: remit mid-train --base runs/mine/base --ref runs/mine/rl-tune --run-dir runs/mine
    """
    return lambda: session.plans.mid_train(session.config, base, ref)


@_planned("rl-tune", STAGES)
def rl_tune(session: Session, base: options.Base) -> Plan:
    """Run only reinforcement learning with verifiable rewards (GRPO), on any checkpoint.

    Example: remit rl-tune --base runs/mine/post-train/20-sft --run-dir runs/mine
    """
    return lambda: session.plans.rl_tune(session.config, base)


@_planned("post-train", STAGES)
def post_train(session: Session, base: options.Base) -> Plan:
    """Run SFT, then DPO, then RLVR; each can be switched off.

    Example: remit post-train --base runs/mine/mid-train --run-dir runs/mine dpo.enabled=false
    """
    return lambda: session.plans.post_train(session.config, base)


@_planned("score", STAGES)
def score(session: Session, model: options.ScoredModel, base: options.TokenizerBase = None) -> Plan:
    """Precompute per-token log-probabilities of the mid-training data.

    `remit mid-train mid_train.reference=cached` reads them.

    Example: remit score --model runs/mine/rl-tune --base runs/mine/base --run-dir runs/mine
    """
    return lambda: session.plans.score(session.config, model, base)


@_planned("eval", STAGES)
def evaluate(
    session: Session, model: options.Model, suite: options.Suite = None, chat: options.Chat = None
) -> Plan:
    """Measure accuracy per task and benchmark with intervals, and held-out bits per byte.

    Example: remit eval --model runs/mine/mid-train --suite quick --run-dir runs/mine
    """
    if suite is not None:
        session.overrides = [f"eval.suite={dumps(suite)}", *session.overrides]
    return lambda: session.plans.evaluate(session.config, model, chat)


@_planned("contamination", STAGES)
def contamination(session: Session) -> Plan:
    """Search every training source for the evaluation questions; show counts and examples.

    Example: remit contamination --config gsm8k-small --run-dir runs/mine --json
    """
    return lambda: session.plans.contamination(session.config)


@_planned("flywheel", LOOP)
def flywheel(
    session: Session,
    iterations: options.Iterations = None,
    base: options.OptionalBase = None,
    ref: options.OptionalRef = None,
    until: options.Until = None,
    only: options.Only = None,
) -> Plan:
    """Run the whole loop: base, the plain round 0, then rounds of ReMiT.

    Example: remit flywheel --iterations 3
    """
    session.until, session.only = until, only
    return lambda: session.plans.whole_flywheel(session.config, iterations, base, ref)


@_planned("compare", LOOP)
def compare(
    session: Session, base: options.ComparedBase = None, ref: options.OptionalRef = None
) -> Plan:
    """Mid-train one base with every objective over several seeds, and tabulate the results.

    Example: remit compare --base runs/w/base --ref runs/w/round-0/40-rlvr seeds=3
    """
    return lambda: session.plan_compare(base, ref)


@app.command("analyze", rich_help_panel=LOOP)
def analyze(
    run: options.FlywheelRun, json: options.Json = False, overrides: options.Overrides = None
) -> None:
    """Measure what mid-training, token weights and RL changed in a flywheel, finished or not.

    Example: remit analyze runs/world
    """
    from remit_cli.session import Session, run_and_exit

    session = Session("analyze", "", run, None, None, json, overrides or [])
    run_and_exit(session, session.plan_analysis)


@_planned("plan", LOOP, start=False)
def plan(
    session: Session,
    iterations: options.Iterations = None,
    base: options.OptionalBase = None,
    ref: options.OptionalRef = None,
    compare: options.Compared = False,
) -> Plan:
    """Show what `flywheel` or `compare` would run: stages, tokens, FLOPs, bytes, time.

    It starts nothing.

    Example: remit plan --config olmo2-1b --iterations 3
    """
    if not compare:
        return lambda: session.plans.whole_flywheel(session.config, iterations, base, ref)
    if iterations is not None:
        raise typer.BadParameter(
            "a comparison has no rounds: leave --iterations or --compare out",
            param_hint="--iterations",
        )
    session.command = "compare"
    return lambda: session.plan_compare(base, ref)


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
def status(run: options.AnyRun, once: options.Once = False, json: options.Json = False) -> None:
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
