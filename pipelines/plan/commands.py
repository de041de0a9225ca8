"""Turn a command line into an ordered list of stages. Nothing runs here."""

from __future__ import annotations

from dataclasses import replace

from pipelines.errors import UserError
from pipelines.models.checkpoint import ModelRef, find_checkpoint, stage_kind
from pipelines.plan import flywheel
from pipelines.plan.kinds import is_kind, kind_of
from pipelines.plan.stage import CONTAMINATION, Stage
from pipelines.recipe.schema import Config


def pretrain_ckpt(config: Config, base: str | None) -> list[Stage]:
    """`pretrain-ckpt`: train the base, or import `base` (else the `base` of the recipe)."""
    return flywheel.plan_base(*_with_base(config, base))


def mid_train(config: Config, base: str, ref: str | None) -> list[Stage]:
    """`mid-train`."""
    decided = flywheel.with_objective(config, bool(ref))
    found = find_checkpoint(base, "--base")
    return flywheel.mid_stages(decided, _named("mid-train", config), found, _reference(ref))


def score(config: Config, model: str, base: str | None) -> list[Stage]:
    """`score`: per-token log-probabilities of the mid-training sequences of a base."""
    inputs: dict[str, str | ModelRef] = {"model": find_checkpoint(model, "--model")}
    if base is not None:
        inputs["base"] = find_checkpoint(base, "--base")
    return [Stage("score", _named("score", config), config, inputs)]


def post_train(config: Config, base: str) -> list[Stage]:
    """`post-train`: the enabled steps, each from the model of the step before."""
    found = find_checkpoint(base, "--base")
    stages = flywheel.plan_post_train(config, found, _named("post-train", config))
    if not stages:
        raise UserError("post-train: sft, dpo and rlvr are all disabled; enable one of them.")
    return stages


def rl_tune(config: Config, base: str) -> list[Stage]:
    """`rl-tune`: the RLVR step alone."""
    found = find_checkpoint(base, "--base")
    return [Stage("rlvr", _named("rl-tune", config), config, {"model": found})]


def evaluate(config: Config, model: str, chat: bool | None) -> list[Stage]:
    """`eval`, after a contamination check if contaminated questions are left out.

    `chat` uses the chat template; None uses it if the stage that made the model does.
    """
    _check_questions(config, "eval", "measure")
    found = find_checkpoint(model, "--model")
    if chat is None:
        made_by = stage_kind(found) or ""
        chat = is_kind(made_by) and kind_of(made_by).chat
    evaluation = Stage("evaluate", _named("eval", config), config, {"model": found}, chat=chat)
    if config.eval.contamination != "leave_out":
        return [evaluation]
    check = flywheel.contamination_check(config, _pipeline(config), _named(CONTAMINATION, config))
    return [check, flywheel.without_contaminated(evaluation, check.name)]


def contamination(config: Config) -> list[Stage]:
    """`contamination`: check every source of the recipe's training stages."""
    _check_questions(config, "contamination", "look for")
    return [flywheel.contamination_check(config, _pipeline(config), _named(CONTAMINATION, config))]


def whole_flywheel(
    config: Config, iterations: int | None, base: str | None, ref: str | None
) -> list[Stage]:
    """`flywheel` and `plan`."""
    if iterations is not None:
        if iterations < 0:
            raise UserError(f"--iterations {iterations}: must not be negative.")
        config = replace(config, flywheel=replace(config.flywheel, iterations=iterations))
    config, found = _with_base(config, base)
    return flywheel.plan_flywheel(config, found, _reference(ref))


def _check_questions(config: Config, command: str, aim: str) -> None:
    if not flywheel.has_questions(config):
        raise UserError(
            f"{command}: the recipe '{config.name}' enables no task and no benchmark of eval, and "
            f"has no eval.bits_per_byte, so there is nothing to {aim}."
        )


def _with_base(config: Config, base: str | None) -> tuple[Config, ModelRef | None]:
    """`--base`, else the recipe's `base`. The config records which, for the identity."""
    given = base if base is not None else config.base or None
    if given is None:
        return config, None
    return replace(config, base=given), find_checkpoint(given, "--base")


def _reference(ref: str | None) -> ModelRef | None:
    return None if ref is None else find_checkpoint(ref, "--ref")


def _pipeline(config: Config) -> list[Stage]:
    """The plain pipeline of a recipe, without the base stage if the recipe imports its base."""
    base: list[Stage] = [] if config.base else flywheel.plan_base(config, None)
    mid = Stage("mid_train", "mid-train", config)
    evaluation = Stage("evaluate", "eval", config)
    return [*base, mid, *flywheel.plan_post_train(config, mid.name, ""), evaluation]


def _named(command: str, config: Config) -> str:
    return f"{command}-{config.stage.name}" if config.stage.name else command
