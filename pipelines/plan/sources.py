"""What a stage reads: its section of the recipe, its data sources, and whether they are local."""

from __future__ import annotations

from typing import Any

from pipelines.evals.availability import needs_hub
from pipelines.plan.kinds import KINDS, kind_of
from pipelines.plan.stage import Stage
from pipelines.recipe.schema import AnalysisConfig, EvalConfig, TrainConfig


def settings_of(stage: Stage) -> TrainConfig | EvalConfig | AnalysisConfig:
    """The section of the recipe that a stage takes its settings from."""
    name = kind_of(stage.kind).section
    section: TrainConfig | EvalConfig | AnalysisConfig = getattr(stage.config, name)
    return section


def sources_of(stage: Stage) -> dict[str, Any]:
    """The data sources a stage reads, by config key."""
    config = stage.config
    if stage.kind == "pretrain" and "base" in stage.inputs:
        return {}
    if stage.kind == "contamination":
        kinds = [kind.name for kind in KINDS if kind.trains] + ["evaluate"]
        every = {k: s for kind in kinds for k, s in sources_of(Stage(kind, kind, config)).items()}
        return {key: every[key] for key in stage.reads}
    found: dict[str, Any] = {}
    if stage.kind == "evaluate" or (stage.kind == "analyze" and config.analysis.accuracy_questions):
        tasks = config.eval.tasks
        found |= {f"eval.tasks.{name}": t.source for name, t in tasks.items() if t.enabled}
    if stage.kind in ("evaluate", "analyze"):
        texts = config.eval.bits_per_byte
        found |= {f"eval.bits_per_byte.{name}": source for name, source in texts.items()}
    if stage.kind != "evaluate":
        # An analysis reads the training text of the rounds.
        key = "mid_train" if stage.kind == "analyze" else kind_of(stage.kind).section
        sources = getattr(config, key).sources
        found |= {f"{key}.sources.{name}": source for name, source in sources.items()}
    return found


def is_offline(stage: Stage) -> bool:
    """Whether all inputs of a stage are local, so that libraries are kept from asking a hub."""
    if any(source.kind == "hub" for source in sources_of(stage).values()):
        return False
    asks = kind_of(stage.kind).asks
    return not (asks and needs_hub(stage.config.eval, stage.config.data_root))
