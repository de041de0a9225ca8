"""What the rows of a comparison depend on, and the rows of its complete stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.comparison.arm_rules import variant_of
from pipelines.comparison.arm_stages import behind, place
from pipelines.comparison.row import Row
from pipelines.models.checkpoint import ModelRef, content_hash
from pipelines.plan.estimate import stage_flops
from pipelines.plan.flywheel import enabled_post_steps
from pipelines.plan.identity import digest, identity_fields
from pipelines.plan.sources import sources_of
from pipelines.plan.stage import Stage
from pipelines.recipe.schema import Config
from pipelines.run_dir.paths import RunDir

# Keys in which rows of one arm may differ.
_OF_A_SEED = ("seed", "mid_train.snapshots")
# Keys in which the built-in arms of a comparison may differ too; variants change more.
_OF_AN_ARM = (*_OF_A_SEED, "mid_train.objective", "mid_train.reference")


@dataclass
class Study:
    """Hashes of what each evaluation of a comparison depends on, apart from its seed."""

    stages: Sequence[Stage]  # the whole plan
    data_sha256: dict[str, str]  # of each source, by config key
    config: Config
    base: ModelRef | None
    ref: ModelRef | None
    _hashes: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name = {stage.name: stage for stage in self.stages}

    def parts(self, evaluation: Stage) -> dict[str, str]:
        """Hashes of an arm's input models by role, and of the settings of its stages by kind."""
        chain = [evaluation, *behind(evaluation, self.by_name, whole=False)]
        parts = {stage.kind: self._settings(stage) for stage in chain if stage.kind != "score"}
        mid = next(stage for stage in chain if stage.kind == "mid_train")
        seed = evaluation.config.seed
        return parts | {role: self._model(given, seed) for role, given in mid.inputs.items()}

    @cached_property
    def shared(self) -> dict[str, str]:
        """Hashes of what all arms share: the recipe of their training, its data, base, reference.

        Two rows that differ in one of them belong to different studies, whatever their arms.
        """
        kinds = ["mid_train"] if self.base else ["pretrain", "mid_train"]
        if self.config.compare.base_per_seed or self.config.compare.post_train:
            kinds += enabled_post_steps(self.config)
        parts = {kind: digest(_fields(kind, self.config, _OF_AN_ARM))[:16] for kind in kinds}
        # Of the recipe's sources those that mid-training reads; variants cannot change them.
        own = {f"mid_train.sources.{name}" for name in self.config.mid_train.sources}
        mids = [sources_of(stage) for stage in self.stages if stage.kind == "mid_train"]
        read = {key for mid in mids for key, source in mid.items() if source.weight > 0}
        parts |= {f"data {key}": self.data_sha256[key][:16] for key in sorted(own & read)}
        models = (("base", self.base), ("ref", self.ref))
        return parts | {role: self._content(given) for role, given in models if given}

    def _settings(self, stage: Stage) -> str:
        kept = _fields(stage.kind, stage.config, _OF_A_SEED) | {"chat": stage.chat}
        data = {f"data {key}": self.data_sha256[key] for key in sources_of(stage)}
        return digest(kept | data)[:16]

    def _model(self, given: str | ModelRef, seed: int) -> str:
        """Hash of a given model's content, or of what determines a model that the plan makes."""
        if isinstance(given, ModelRef):
            return self._content(given)
        name, _, number = given.partition("@")
        stage = self.by_name[name]
        decided = {role: self._model(model, seed) for role, model in stage.inputs.items()}
        decided["settings"] = self._settings(stage)
        if number:
            decided["kept model"] = f"{number} of {stage.config.mid_train.snapshots}"
        if stage.config.seed != seed:
            decided["seed after its own"] = str(stage.config.seed - seed)
        return digest(decided)[:16]

    def _content(self, given: ModelRef) -> str:
        assert given.folder is not None
        if given.folder not in self._hashes:
            self._hashes[given.folder] = content_hash(given.folder)[:16]
        return self._hashes[given.folder]


def _fields(kind: str, config: Config, without: Sequence[str]) -> dict[str, Any]:
    """The keys of the recipe that a stage's result depends on, but for some of them."""
    fields = identity_fields(kind, config, {})
    return {key: value for key, value in fields.items() if key not in without}


def result_rows(stages: Sequence[Stage], run: RunDir, study: Study, parameters: int) -> list[Row]:
    """The rows of a comparison's complete evaluations; the base has so many `parameters`."""
    made = {stage.name: stage for stage in stages if run.stage(stage.name).is_complete()}
    results = {name: run.stage(name).read_result() for name in made}
    found = []
    for name, stage in made.items():
        if stage.kind != "evaluate":
            continue
        arm, seed, point = place(stage)
        spent = {s.name: s for s in behind(stage, made, whole=False)}
        result, texts = results[name], results[name]["bits_per_byte"]
        mid = next(results[s.name] for s in spent.values() if s.kind == "mid_train")
        flops = [stage_flops(s, parameters, results[n].get("steps", 0)) for n, s in spent.items()]
        found.append(Row(
            arm, seed, point, variant_of(stage.config, arm).against,
            identity=result["identity"],
            study=study.parts(stage),
            average=result["average"],
            tasks={
                task: {key: score[key] for key in ("accuracy", "questions", "bits")}
                for task, score in result["tasks"].items()
            },
            bits_per_byte={domain: text["bits_per_byte"] for domain, text in texts.items()},
            sampled=_mean_sampled(result["tasks"]),
            tokens=mid["tokens"],
            steps=mid["steps"],
            passes=max(source["epochs"] for source in mid["mixture"].values()),
            flops=sum(flops),
            seconds=sum(results[s]["seconds"] for s in spent),
            training=training_measures({s.kind: results[n] for n, s in spent.items()}),
            shared=study.shared,
        ))  # fmt: skip
    return found


def training_measures(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Measures of an arm's training to compare, from its results by kind of stage.

    The first and the last loss of SFT, in nats, which all arms compute in the same way, and each
    domain's share of the tokens of an arm that selects sequences.
    """
    sft = results.get("sft", {})
    losses = {f"SFT loss, {end}": sft[f"loss_{end}"] for end in ("first", "last") if sft}
    domains = results["mid_train"].get("selection", {}).get("domains", {})
    return losses | {f"chosen {domain}": share["kept"] for domain, share in domains.items()}


def _mean_sampled(tasks: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The mean over tasks of each measure that all sampled tasks have."""
    sampled = [task["sampled"] for task in tasks.values() if "sampled" in task]
    names = dict.fromkeys(name for scores in sampled for name in scores)
    return {
        name: sum(scores[name]["mean"] for scores in sampled) / len(sampled)
        for name in names
        if all(name in scores for scores in sampled)
    }
