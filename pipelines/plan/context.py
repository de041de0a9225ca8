"""How long a sequence the models of a plan take, and whether a stage needs longer ones."""

from __future__ import annotations

from pipelines.errors import UserError
from pipelines.models.checkpoint import ModelRef, read_model_config
from pipelines.plan.sources import settings_of
from pipelines.plan.stage import Stage
from pipelines.recipe.schema import DpoConfig, RlvrConfig, SftConfig, longest_sequence


def longest_context(stage: Stage, stages: list[Stage]) -> int | None:
    """The tokens that the model of a stage takes; None where the plan alone does not tell it.

    A given model takes what its config.json says; a base that the plan trains takes its
    sequence_length, and so does what is trained from it.
    """
    given = stage.inputs.get("model") or stage.inputs.get("base")
    if isinstance(given, ModelRef):
        return _positions(given, "--model")
    if given is None:
        return stage.config.sequence_length if stage.kind == "pretrain" else None
    name = given.partition("@")[0]
    before = next((one for one in stages if one.name == name), None)
    return longest_context(before, stages) if before else None


def _positions(model: ModelRef, option: str) -> int | None:
    if model.folder is None:
        return None
    found = read_model_config(model.folder, option).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def check_context(stage: Stage, stages: list[Stage]) -> None:
    """Refuse sequences that are longer than a model of the stage takes.

    Raises:
        UserError: the key, its value and the positions of the model.
    """
    key, needed = _needed(stage)
    for role, given in stage.inputs.items():
        if isinstance(given, ModelRef) and given.folder:
            longest, named = _positions(given, f"--{role}"), f"the model in {given.folder}"
        elif role == "model" and key != "sequence_length":
            longest, named = longest_context(stage, stages), "the base"
        else:
            continue
        if longest is not None and needed > longest:
            most = f"Set {key}={longest} or less."
            if " " in key:
                most = f"Together they may be at most {longest}."
            raise UserError(f"{key} = {needed} is above the {longest} positions of {named}. {most}")


def _needed(stage: Stage) -> tuple[str, int]:
    """The key that sets the longest sequence of a stage, or the two keys; and its tokens."""
    settings = settings_of(stage)
    if isinstance(settings, (SftConfig, DpoConfig)) and settings.max_length:
        return f"{stage.kind}.max_length", settings.max_length
    if isinstance(settings, RlvrConfig) and settings.max_prompt_length:
        keys = "rlvr.max_prompt_length + rlvr.max_completion_length"
        return keys, longest_sequence(settings, stage.config.sequence_length)
    return "sequence_length", stage.config.sequence_length
