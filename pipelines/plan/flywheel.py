"""The flywheel as an ordered list of stages. Pure: nothing runs here.

    round 0:       mid_0 = mid-train(base, ntp);               post_0 = post-train(mid_0)
    round k >= 1:  mid_k = mid-train(base, remit, post_{k-1});  post_k = post-train(mid_k)

Every round restarts mid-training from the same immutable base (arXiv 2602.03075, figure 2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipelines.errors import UserError
from pipelines.models.checkpoint import ModelRef
from pipelines.plan.kinds import POST_STEPS, kind_of
from pipelines.plan.sources import sources_of
from pipelines.plan.stage import ANALYSIS, BASE, BASE_EVAL, CONTAMINATION, Stage
from pipelines.recipe.schema import Config, objective_kind, uses_score_cache


def enabled_post_steps(config: Config) -> list[str]:
    """The enabled steps of post-training, in their order."""
    return [kind for _, kind in POST_STEPS if getattr(config, kind).enabled]


def _check_post_steps(config: Config) -> None:
    if not enabled_post_steps(config):
        raise UserError(
            "sft, dpo and rlvr are all disabled: the flywheel has no post-trained model to "
            "use as the reference. Set one of sft.enabled, dpo.enabled, rlvr.enabled to true."
        )


def plan_base(config: Config, base: ModelRef | None) -> list[Stage]:
    """`pretrain-ckpt`: train the base, or import one."""
    inputs: dict[str, str | ModelRef] = {"base": base} if base else {}
    return [Stage("pretrain", BASE, config, inputs)]


def with_objective(config: Config, has_ref: bool) -> Config:
    """The config with `mid_train.objective=auto` resolved.

    Raises:
        UserError: the objective needs a reference and has none, or reads none and has one; or
            options conflict.
    """
    objective = config.mid_train.objective
    if objective == "auto":
        objective = "remit" if has_ref else "ntp"
    kind = objective_kind(objective)
    mid = dataclasses.replace(config.mid_train, objective=objective)
    for wrong, why in (
        (kind.needs_reference and not has_ref,
         f"mid_train.objective={objective} needs a reference: give one with --ref RL_CKPT, "
         "or set mid_train.objective=ntp."),
        (has_ref and not kind.needs_reference,
         f"mid_train.objective={objective} uses no reference, but --ref gives one. Leave --ref "
         "out, or set mid_train.objective=remit (or auto)."),
        (objective == "remit" and mid.scope == "step" and not mid.remit.detach,
         "mid_train.remit.detach=false cannot be combined with mid_train.scope=step, which "
         "computes the weights in a forward without gradient. Change one of them."),
        (kind.reads == "distribution" and mid.reference == "cached",
         f"mid_train.objective={objective} needs the reference's whole distribution, and the "
         "score cache keeps one number per token. Set mid_train.reference=inline."),
    ):  # fmt: skip
        if wrong:
            raise UserError(why)
    return dataclasses.replace(config, mid_train=mid)


def mid_stages(
    config: Config,
    name: str,
    base: str | ModelRef,
    ref: str | ModelRef | None,
    small: ModelRef | None = None,
) -> list[Stage]:
    """A mid-training of a resolved objective, preceded by the score stages that it reads.

    `small` is MiniPLM's small model; None: the base.
    """
    inputs: dict[str, str | ModelRef] = {"base": base, **({"ref": ref} if ref else {})}
    selects = objective_kind(config.mid_train.objective).selects_sequences
    if selects and small:
        inputs["small"] = small
    mid = Stage("mid_train", name, config, inputs)
    if ref is None or not uses_score_cache(config.mid_train):
        return [mid]
    scored = {**({"score-small": small or base} if selects else {}), "score": ref}
    return [
        Stage("score", f"{name}-{suffix}", config, {"model": model, "base": base})
        for suffix, model in scored.items()
    ] + [mid]


def plan_post_train(config: Config, base: str | ModelRef, folder: str) -> list[Stage]:
    """`post-train`: the enabled steps of SFT, DPO, RLVR, each from the one before."""
    stages: list[Stage] = []
    model = base
    for number, kind in POST_STEPS:
        if getattr(config, kind).enabled:
            stages.append(Stage(kind, f"{folder}/{number}-{kind}", config, {"model": model}))
            model = stages[-1].name
    return stages


def with_contamination(
    config: Config, stages: list[Stage], name: str = CONTAMINATION
) -> list[Stage]:
    """A plan with a contamination check of all sources that its stages read, before its first eval.

    The plan stays unchanged if `eval.contamination` is `none` or the recipe asks no questions.
    """
    mode = config.eval.contamination
    if mode == "none" or not has_questions(config):
        return stages
    first = next(i for i, stage in enumerate(stages) if stage.kind == "evaluate")
    if mode == "leave_out":
        stages = [without_contaminated(s, name) if s.kind == "evaluate" else s for s in stages]
    return [*stages[:first], contamination_check(config, stages, name), *stages[first:]]


def has_questions(config: Config) -> bool:
    """Whether the recipe has a task, a benchmark or held-out text."""
    settings = config.eval
    tasks = any(task.enabled for task in settings.tasks.values())
    benchmarks = any(benchmark.enabled for benchmark in settings.benchmarks.values())
    return tasks or benchmarks or bool(settings.bits_per_byte)


def contamination_check(config: Config, stages: list[Stage], name: str) -> Stage:
    reads = dict.fromkeys(key for stage in stages for key in sources_of(stage))
    return Stage("contamination", name, config, reads=tuple(reads))


def without_contaminated(evaluation: Stage, check: str) -> Stage:
    inputs = evaluation.inputs | {CONTAMINATION: check}
    return dataclasses.replace(evaluation, inputs=inputs)


def plan_flywheel(config: Config, base: ModelRef | None, ref: ModelRef | None) -> list[Stage]:
    """`flywheel`: the base, then rounds 0 to `flywheel.iterations`, with an eval after each part,
    and an analysis of everything at the end.

    `ref` replaces round 0's post-trained model as the reference of round 1. Round 0 still runs as
    the baseline unless `flywheel.baseline` is false.
    """
    _check_post_steps(config)
    rounds = config.flywheel.iterations
    if not config.flywheel.baseline and ref is None:
        raise UserError(
            "flywheel.baseline=false skips round 0, which would make the first reference. "
            "Give a reference with --ref RL_CKPT."
        )
    objective = config.mid_train.objective
    if rounds and objective != "auto" and not objective_kind(objective).needs_reference:
        raise UserError(
            f"mid_train.objective={objective} uses no reference, but round 1 of a flywheel needs "
            "one. Leave mid_train.objective=auto; round 0 is plain next-token prediction."
        )
    stages = plan_base(config, base)
    stages.append(Stage("evaluate", BASE_EVAL, config, {"model": BASE}))
    reference: str | ModelRef | None = ref
    for number in range(0 if config.flywheel.baseline else 1, rounds + 1):
        stages += _round(config, number, reference if number else None)
        if number or ref is None:
            reference = stages[-1].inputs["model"]
    if config.analysis.enabled:
        stages.append(plan_analysis(config, stages))
    return with_contamination(config, stages)


def plan_analysis(config: Config, stages: Sequence[Stage]) -> Stage:
    """`analyze`: compare the models of a flywheel's stages, and its external reference.

    Raises:
        UserError: fewer than two models, or no base among them.
    """
    _check_post_steps(config)
    models = [stage.name for stage in stages if kind_of(stage.kind).trains]
    if BASE not in models or len(models) < 2:
        raise UserError(
            "analyze compares the models of a flywheel, but this run has no finished base with a "
            "finished mid-training. Repeat the `remit flywheel` command to resume it."
        )
    inputs: dict[str, str | ModelRef] = {name: name for name in models}
    for given in (stage.inputs.get("ref") for stage in stages):
        if isinstance(given, ModelRef):
            inputs["ref"] = given
    if any(stage.kind == "mid_train" and "ref" in stage.inputs for stage in stages):
        config = with_objective(config, True)
    # An analysis runs on one rank.
    launch = dataclasses.replace(config.launch, gpus=1, nodes=1, hostfile="")
    return Stage("analyze", ANALYSIS, dataclasses.replace(config, launch=launch), inputs)


def _round(config: Config, number: int, reference: str | ModelRef | None) -> list[Stage]:
    folder = f"round-{number}"
    # Round 0 is the standard pipeline, whatever the objective of the other rounds.
    mid = config.mid_train
    if reference is None:
        mid = dataclasses.replace(mid, objective="auto")
    mid_config = with_objective(dataclasses.replace(config, mid_train=mid), reference is not None)
    stages = mid_stages(mid_config, f"{folder}/10-mid-train", BASE, reference)
    model = stages[-1].name
    stages.append(Stage("evaluate", f"{folder}/15-eval", config, {"model": model}))
    stages += plan_post_train(config, model, folder)
    model = stages[-1].name
    return [*stages, Stage("evaluate", f"{folder}/50-eval", config, {"model": model}, chat=True)]
