"""Trainings by epochs: how many steps they have, where their records can be counted beforehand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.data.inspection import inspect_source
from pipelines.errors import UserError
from pipelines.plan.sources import settings_of, sources_of
from pipelines.plan.stage import Stage
from pipelines.recipe.schema import DpoConfig, SftConfig, steps_of_epochs
from pipelines.run_dir.paths import RunDir


def trains_by_epochs(stage: Stage) -> bool:
    """Whether `num_train_epochs` sets the steps of a stage."""
    settings = settings_of(stage)
    return isinstance(settings, (SftConfig, DpoConfig)) and not settings.max_steps


def counted(stages: list[Stage], run: RunDir) -> list[Stage]:
    """The stages, with the steps of those that train by epochs where all their records are counted.

    Local files are read for it once; a hub is not asked, and files that are missing or wrong count
    as unknown. Of pairs it is the most there can be: training leaves out those with equal answers.
    """
    cache = run.data / "inspected.json" if run.root.is_dir() else None
    return [_with_steps(stage, cache) if trains_by_epochs(stage) else stage for stage in stages]


def _with_steps(stage: Stage, cache: Path | None) -> Stage:
    settings = settings_of(stage)
    assert isinstance(settings, (SftConfig, DpoConfig))
    sources = {key: source for key, source in sources_of(stage).items() if source.weight > 0}
    total = 0
    for key, source in sources.items():
        try:
            hub, root = source.kind == "hub", stage.config.data_root
            kept = 0 if hub else inspect_source(key, source, root, settings.RECORDS, cache).kept
        except UserError:
            kept = 0
        if not kept:
            return stage
        total += kept
    if isinstance(settings, DpoConfig):
        total = max(0, total - settings.heldout_pairs)
    return replace(stage, num_steps=steps_of_epochs(settings, total))
