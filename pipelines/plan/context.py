"""How long a sequence the models of a plan take, and whether a stage needs longer ones."""

from __future__ import annotations

from pipelines.errors import UserError
from pipelines.models.checkpoint import ModelRef, read_model_config
from pipelines.plan.sources import settings_of
from pipelines.plan.stage import Stage
from pipelines.recipe.schema import DpoConfig, RlvrConfig, SftConfig, longest_sequence


def longest_context(stage: Stage, stages: list[Stage]) -> int | None:
    """The tokens that the model of a stage takes; None where the plan alone does not tell it.

    A base that the plan trains takes its sequence_length, and what is trained from it too; a given
    model what its config.json says.
    """
    by_name = {one.name: one for one in stages}
    while True:
        given = stage.inputs.get("model") or stage.inputs.get("base")
        if isinstance(given, ModelRef):
            if given.folder is None:
                return None
            found = read_model_config(given.folder, "--model").get("max_position_embeddings")
            return found if isinstance(found, int) else None
        if given is None:
            return stage.config.sequence_length if stage.kind == "pretrain" else None
        before = by_name.get(given.partition("@")[0])
        if before is None:
            return None
        stage = before


def check_context(stage: Stage, stages: list[Stage]) -> None:
    """Refuse sequences that are longer than a model of the stage takes.

    Raises:
        UserError: the key, its value and the positions of the model.
    """
    key, needed = _needed(stage)
    for role, given in stage.inputs.items():
        if isinstance(given, ModelRef) and given.folder:
            longest = read_model_config(given.folder, f"--{role}").get("max_position_embeddings")
            named = f"the model in {given.folder}"
        elif role == "model" and key != "sequence_length":
            longest, named = longest_context(stage, stages), "the base"
        else:
            continue
        if isinstance(longest, int) and needed > longest:
            raise UserError(
                f"{key} = {needed} is above the {longest} positions of {named}. "
                + (
                    f"Set {key}={longest} or less."
                    if " " not in key
                    else f"Together they may be at most {longest}."
                )
            )


def _needed(stage: Stage) -> tuple[str, int]:
    """The key that sets the longest sequence of a stage, or the two keys; and its tokens."""
    settings = settings_of(stage)
    if isinstance(settings, (SftConfig, DpoConfig)) and settings.max_length:
        return f"{stage.kind}.max_length", settings.max_length
    if isinstance(settings, RlvrConfig) and settings.max_prompt_length:
        keys = "rlvr.max_prompt_length + rlvr.max_completion_length"
        return keys, longest_sequence(settings, stage.config.sequence_length)
    return "sequence_length", stage.config.sequence_length
