"""The plan of `compare`: the arms of the paper's table, and variants of them. Pure.

Arms mid-train with the same settings on the same data order. They differ only in the objective and
its inputs, variants also in the keys that they override. Seeds vary the data order and the random
numbers, and with `compare.base_per_seed` the base too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.comparison import arm_rules
from pipelines.comparison.arm_rules import BASE, PLAIN, known_arms, variant_of
from pipelines.comparison.arm_stages import CHECK, FOLDER
from pipelines.errors import UserError, did_you_mean
from pipelines.models.checkpoint import ModelRef, find_checkpoint
from pipelines.plan.estimate import stage_flops
from pipelines.plan.flywheel import mid_stages, plan_post_train, with_contamination, with_objective
from pipelines.plan.stage import Stage
from pipelines.recipe.load import varied
from pipelines.recipe.rules import check_one_step, check_points
from pipelines.recipe.schema import Config, objective_kind
from pipelines.run_dir.paths import StageDir

Given = str | ModelRef


def plan_compare(config: Config, base: ModelRef | None, ref: ModelRef | None) -> list[Stage]:
    """The stages of all arms and seeds.

    Raises:
        UserError: an unknown arm, no task, settings that cannot be combined, or an arm whose
            reference cannot be found.
    """
    arm_rules.check_comparison(config, base, ref)
    given = config.compare
    small = find_checkpoint(given.small, "compare.small") if given.small else None
    stages: dict[str, Stage] = {}
    for seed in range(config.seed, config.seed + given.seeds):
        own = _Seed(config, seed, _GivenModels(base, ref, small), stages)
        if given.base_per_seed:
            own.reference()
        for arm in dict.fromkeys(given.arms):
            own.evaluated(arm)
    # A separate name, since a flywheel in the same run directory reads more sources.
    whole = _with_all_sources(config, stages.values())
    return with_contamination(whole, list(stages.values()), CHECK)


def _with_mid(config: Config, **changes: Any) -> Config:
    """The recipe with other values in its section `mid_train`."""
    return replace(config, mid_train=replace(config.mid_train, **changes))


def _with_all_sources(config: Config, stages: Iterable[Stage]) -> Config:
    """The recipe with the mid-training sources that variants add.

    Raises:
        UserError: two different sources have the same name.
    """
    sources = dict(config.mid_train.sources)
    for stage in stages:
        if stage.kind != "mid_train":
            continue
        for name, source in stage.config.mid_train.sources.items():
            known = sources.setdefault(name, source)
            if replace(known, weight=source.weight) != source:
                arm = stage.name.split("/")[2]
                raise UserError(
                    f"compare.variants.{arm}.set: source '{name}' differs from the source of that "
                    "name in the recipe or in another variant. Rename it (weight=0 leaves a "
                    "source of the recipe out)."
                )
    return _with_mid(config, sources=sources)


class _GivenModels(NamedTuple):
    """Checkpoints that the user gave to a comparison."""

    base: ModelRef | None
    ref: ModelRef | None
    small: ModelRef | None


@dataclass
class _Seed:
    """The arms of one seed. Each method adds the stages that it names to `stages`, once.

    Attributes:
        stages: stages of all seeds by name, each after the stages it needs.
        making: arms whose mid-training is being planned, to detect circular references.
    """

    recipe: Config
    seed: int
    models: _GivenModels
    stages: dict[str, Stage]
    making: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        compare = self.recipe.compare
        self.config = _with_mid(replace(self.recipe, seed=self.seed), snapshots=compare.points)
        self.folder = f"{FOLDER}/seed-{self.seed}"
        # With equal FLOPs, arm `ntp` trains on more tokens than the plain pipeline.
        self.plain = "ntp" if compare.budget == "tokens" else PLAIN

    def base(self) -> Given:
        made = Stage("pretrain", f"{self.folder}/base", self.config)
        return self.models.base or self._add([made])

    def reference(self) -> Given:
        """The default reference model of the arms."""
        if self.models.ref is not None:
            return self.models.ref
        if not self.recipe.compare.base_per_seed:
            raise UserError(
                f"arm '{self.making[-1]}' needs --ref CKPT, the RL-tuned model; "
                f"{' and '.join(self.making[:-1]) or 'compare.arms'} requires that arm."
            )
        return self.post_trained(self.plain)[-1].name

    def mid(self, arm: str) -> str:
        """The mid-training stage of an arm, after the score stages that it reads."""
        name = f"{self.folder}/{arm}/10-mid-train"
        if name in self.stages:
            return name
        if arm in self.making:
            cycle = " -> ".join([*self.making[self.making.index(arm) :], arm])
            raise UserError(f"compare.variants: circular reference between arms: {cycle}.")
        self.making.append(arm)
        base = self._starts_from(arm)
        found = self._mid_stages(arm, self._settings(arm), name, base, self._reference_of(arm))
        self.making.pop()
        return self._add(found)

    def post_trained(self, arm: str) -> list[Stage]:
        mid = self.mid(arm)
        stages = plan_post_train(self.stages[mid].config, mid, f"{self.folder}/{arm}")
        self._add(stages)
        return stages

    def evaluated(self, arm: str) -> None:
        """Add an arm with its evaluations."""
        if arm == "more-rl":
            self._more_rl()
            return
        compare, folder = self.recipe.compare, f"{self.folder}/{arm}"
        mid = self.mid(arm)
        config = self.stages[mid].config
        for number in range(1, config.mid_train.snapshots + 1):
            name = f"{folder}/12-eval-{number}-of-{compare.points + 1}"
            model = f"{mid}@{number}"
            self._add([Stage("evaluate", name, _without_samples(config), {"model": model})])
        self._add([Stage("evaluate", f"{folder}/15-eval", config, {"model": mid})])
        if compare.post_train:
            self._post_evaluated(self.post_trained(arm), folder)

    def _add(self, stages: Sequence[Stage]) -> str:
        """Add the stages that are new, and return the name of the last one."""
        self.stages |= {s.name: s for s in stages if s.name not in self.stages}
        return stages[-1].name if stages else ""

    def _starts_from(self, arm: str) -> Given:
        given = variant_of(self.recipe, arm).base
        if not given:
            return self.base()
        if given in known_arms(self.recipe):
            return self.mid(given)
        return self._found(given, arm, "base")

    def _reference_of(self, arm: str) -> Given | None:
        variant = variant_of(self.recipe, arm)
        if variant.arm in arm_rules.WITHOUT_REFERENCE:
            return None
        name, _, step = variant.ref.partition("/")
        if not name and variant.arm == "sft":
            return self._sft_reference(arm)
        if not name:
            return self.reference()
        if variant.ref == BASE:
            return self.base()
        if name not in known_arms(self.recipe):
            return self._found(variant.ref, arm, "ref")
        seed = self.seed + variant.ref_seed
        own = _Seed(self.recipe, seed, self.models, self.stages, self.making)
        if step:
            return own._step(name, step, arm)
        if not (post := own.post_trained(name)):
            raise UserError(
                f"compare.variants.{arm}.ref: sft, dpo and rlvr are all switched off, so arm "
                f"'{name}' has no post-trained model."
            )
        return post[-1].name

    def _step(self, arm: str, step: str, asking: str) -> str:
        """A stage of an arm, or a snapshot of its mid-training: 20-sft or 10-mid-train@2."""
        self.post_trained(arm)
        folder = f"{self.folder}/{arm}/"
        existing = [name.removeprefix(folder) for name in self.stages if name.startswith(folder)]
        bare, _, number = step.partition("@")
        key = f"compare.variants.{asking}.ref" if variant_of(self.recipe, asking).ref else asking
        last = self.stages[f"{folder}10-mid-train"].config.mid_train.snapshots
        if number and not (number.isdigit() and 1 <= int(number) <= last):
            raise UserError(
                f"{key}: @{number}: mid-training of arm '{arm}' saves {last} snapshots, from @1 "
                "on (set by compare.points for built-in arms, 0 for variants)."
            )
        if bare not in existing or (number and bare != "10-mid-train"):
            raise UserError(
                f"{key}: arm '{arm}' has no stage '{step}'; it has "
                f"{', '.join(n for n in existing if 'eval' not in n and 'score' not in n)}."
            )
        return f"{folder}{step}"

    def _sft_reference(self, arm: str) -> Given:
        """`compare.sft_ref`, or the SFT stage in the same folder as the reference's stage."""
        given, ref = self.recipe.compare.sft_ref, self.models.ref
        if given:
            return find_checkpoint(given, "compare.sft_ref")
        if self.recipe.compare.base_per_seed:
            return self._step(self.plain, "20-sft", arm)
        sibling = ref.folder.parent.parent / "20-sft" if ref and ref.folder else None
        if sibling is None or not StageDir(sibling).is_complete():
            raise UserError(
                f"arm '{arm}': the folder of the reference {ref.location if ref else '(not given)'}"
                " has no SFT stage 20-sft. Set compare.sft_ref=CKPT, or leave sft out of "
                "compare.arms."
            )
        return find_checkpoint(str(sibling), "compare.sft_ref")

    def _found(self, ckpt: str, arm: str, key: str) -> ModelRef:
        """The checkpoint that a variant names, if it does not name an arm."""
        known, named = known_arms(self.recipe), f"compare.variants.{arm}.{key}"
        first, _, step = ckpt.partition("/")
        # Such a name would otherwise pass for one on the hub.
        if not Path(ckpt).exists() and (first in known or re.match(r"\d\d-", step)):
            why = "name an arm, whose mid-trained model is then the base, or a CKPT."
            if first not in known:
                why = f"unknown arm '{first}'{did_you_mean(first, known)}"
            raise UserError(f"{named} = {ckpt}: {why}")
        try:
            return find_checkpoint(ckpt, named)
        except UserError as error:
            raise UserError(f"{error} Or name an arm: {', '.join(known)}.") from error

    def _settings(self, arm: str) -> Config:
        """The config of an arm's stages, with its overrides and its number of tokens."""
        variant = variant_of(self.recipe, arm)
        own = varied(self.config, variant.set, f"compare.variants.{arm}.set")
        if arm != PLAIN and (variant.budget or self.recipe.compare.budget) == "flops":
            own = _with_mid(own, tokens=self._tokens_of_equal_flops(own, arm))
        if arm in self.recipe.compare.variants:
            own = _with_mid(own, snapshots=0)  # Those of a variant are not evaluated.
        try:
            check_one_step(own.mid_train, own.sequence_length)
            check_points(own.mid_train, own.sequence_length, "compare.points")
        except UserError as error:
            raise UserError(f"arm '{arm}': {error}") from error
        return own

    def _mid_stages(
        self, arm: str, config: Config, name: str, base: Given, ref: Given | None
    ) -> list[Stage]:
        kind = variant_of(self.recipe, arm).arm
        config = _with_mid(config, objective=arm_rules.ARMS[kind])
        if objective_kind(config.mid_train.objective).reads == "distribution":
            # The cache stores only the log-probability of each token.
            config = _with_mid(config, reference="inline")
        decided = with_objective(config, ref is not None)
        return mid_stages(decided, name, base, ref, self.models.small)

    def _mid_flops(self, config: Config, arm: str) -> float:
        """FLOPs per parameter of an arm's mid-training, including scoring.

        The reference counts as large as the base, as it is in ReMiT.
        """
        # All references cost the same, so BASE can stand in for one that does not exist yet.
        ref = None if variant_of(self.recipe, arm).arm in arm_rules.WITHOUT_REFERENCE else BASE
        return sum(stage_flops(s, 1) for s in self._mid_stages(arm, config, "", BASE, ref))

    def _tokens_of_equal_flops(self, config: Config, arm: str) -> int:
        """Tokens, in whole steps, that cost an arm as much as `mid_train.tokens` cost ReMiT."""
        budget = self._mid_flops(self.config, "remit")
        step = config.mid_train.global_batch_size * config.sequence_length
        tokens = config.mid_train.tokens * budget / self._mid_flops(config, arm)
        if tokens < step:
            raise UserError(
                f"arm '{arm}': compare.budget=flops leaves it {int(tokens)} of the mid_train.tokens"
                f" = {config.mid_train.tokens}, fewer than one step of {step} tokens. Raise "
                "mid_train.tokens."
            )
        return round(tokens / step) * step

    def _more_rl(self) -> None:
        """The plain pipeline; the FLOPs of ReMiT's reference go into more RLVR steps."""
        folder = f"{self.folder}/more-rl"
        mid = self.mid(self.plain)
        before = [s for s in self.post_trained(self.plain) if s.kind != "rlvr"]
        start = before[-1].name if before else mid
        rlvr = Stage("rlvr", f"{folder}/40-rlvr", self.config, {"model": start})
        extra = self._mid_flops(self.config, "remit") - self._mid_flops(self.config, "ntp")
        more = max(1, round(extra * self.config.rlvr.max_steps / stage_flops(rlvr, 1)))
        longer = replace(self.config.rlvr, max_steps=self.config.rlvr.max_steps + more)
        rlvr = replace(rlvr, config=replace(self.config, rlvr=longer))
        self._add([rlvr])
        self._post_evaluated([rlvr], folder)

    def _post_evaluated(self, post: list[Stage], folder: str) -> None:
        evaluated = {f"{folder}/50-eval": post[-1]}
        if self.recipe.compare.post_points:
            # `25-eval` follows `20-sft`, as in a round: its number is that of the step plus five.
            between = {f"{folder}/{int(s.name.rpartition('/')[2][:2]) + 5}-eval": s for s in post}
            evaluated = dict(list(between.items())[:-1]) | evaluated
        for name, stage in evaluated.items():
            self._add([Stage("evaluate", name, stage.config, {"model": stage.name}, chat=True)])


def _without_samples(config: Config) -> Config:
    """The same evaluation without samples for pass@k."""
    tasks = {n: replace(task, samples=0) for n, task in config.eval.tasks.items()}
    benchmarks = {n: replace(one, samples=0) for n, one in config.eval.benchmarks.items()}
    return replace(config, eval=replace(config.eval, tasks=tasks, benchmarks=benchmarks))
