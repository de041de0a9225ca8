"""`compare`: the arms of the paper's table as a plan, from one base and one budget. Pure.

Every arm mid-trains with the same settings on the same data order; only the objective and what it
needs differ. Seeds vary the data order and the random numbers, and where wanted the base too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.checkpoint import ModelRef, find_checkpoint
from pipelines.errors import UserError
from pipelines.estimate import stage_flops
from pipelines.flywheel import (
    CONTAMINATION,
    Stage,
    mid_stages,
    plan_post_train,
    with_contamination,
    with_objective,
)
from pipelines.run_dir import StageDir
from pipelines.schema import CompareConfig, Config

Objective = Literal["ntp", "kd", "miniplm", "rho1", "remit"]
# Arm -> mid_train.objective. `sft` is ReMiT with the SFT model as its reference; `more-rl` is plain
# mid-training with what ReMiT's reference costs spent on a longer RLVR.
ARMS: dict[str, Objective] = {
    "ntp": "ntp", "kd": "kd", "miniplm": "miniplm", "rho1": "rho1", "sft": "remit",
    "remit": "remit", "more-rl": "ntp",
}  # fmt: skip
WITHOUT_REFERENCE = ("ntp", "more-rl")
FOLDER = "compare"
CHECK = f"{FOLDER}/{CONTAMINATION}"


@dataclass(frozen=True)
class Origin:
    """What the arms of one seed start from: models outside, or names of stages.

    Attributes:
        plain: folder of the plain pipeline of the same seed, which `more-rl` shares with `ntp`
            where their tokens are equal.
    """

    base: str | ModelRef
    ref: str | ModelRef | None
    sft_ref: str | ModelRef | None
    small: ModelRef | None
    plain: str


def plan_compare(config: Config, base: ModelRef | None, ref: ModelRef | None) -> list[Stage]:
    """The stages of all arms and seeds.

    Raises:
        UserError: an unknown arm, no task, settings that do not go together, or an arm whose
            reference cannot be found.
    """
    _check(config, base, ref)
    given = config.compare
    arms = list(dict.fromkeys(given.objectives))
    small = find_checkpoint(given.small, "compare.small") if given.small else None
    sft_ref = None
    if "sft" in arms and not given.base_per_seed:
        sft_ref = _sft_reference(config, ref)
    stages: dict[str, Stage] = {}
    for seed in range(config.seed, config.seed + given.seeds):
        seeded = _seeded(config, seed)
        folder = f"{FOLDER}/seed-{seed}"
        # Under equal FLOPs arm `ntp` trains on more tokens than the plain pipeline.
        plain = f"{folder}/{'ntp' if given.budget == 'tokens' else 'plain'}"
        if given.base_per_seed:
            own = _own_lineage(seeded, folder, plain)
            found = [stage.name for stage in own]
            sft = next((name for name in found if name.endswith("20-sft")), None)
            origin = Origin(found[0], found[-1], sft, small, plain)
            stages |= {stage.name: stage for stage in own}
        else:
            assert base is not None
            origin = Origin(base, ref, sft_ref, small, plain)
        for arm in arms:
            made = _more_rl(seeded, folder, origin) if arm == "more-rl" else None
            for stage in made or _arm(seeded, folder, arm, origin):
                stages.setdefault(stage.name, stage)
    # A name of its own: it reads less than that of a flywheel in the same run directory.
    return with_contamination(config, list(stages.values()), CHECK)


def whole_key(override: str) -> str:
    """An override of `compare`, which may leave its section out: `seeds=3`."""
    own = {field.name for field in dataclasses.fields(CompareConfig)}
    return f"compare.{override}" if override.partition("=")[0].strip() in own else override


def _check(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    given = config.compare
    unknown = [arm for arm in given.objectives if arm not in ARMS]
    if unknown or not given.objectives:
        named = f"no arm '{unknown[0]}'" if unknown else "no arm at all"
        raise UserError(f"compare.objectives: {named}; there are {', '.join(ARMS)}.")
    if config.seed + given.seeds > 2**32:
        raise UserError(
            f"compare.seeds = {given.seeds} from seed = {config.seed} on: the last would be above "
            f"{2**32 - 1}, the largest seed there is."
        )
    steps = config.mid_train.tokens // (config.mid_train.global_batch * config.context_length)
    if given.points and given.points >= steps:
        raise UserError(
            f"compare.points = {given.points}: a mid-training of {steps} steps has fewer points "
            "before its end."
        )
    tasks = any(task.enabled for task in config.eval.tasks.values())
    if not tasks and not any(b.enabled for b in config.eval.benchmarks.values()):
        raise UserError("compare: no task or benchmark is enabled, so no accuracy to compare.")
    if given.post_train and not _post(config):
        raise UserError("compare.post_train: sft, dpo and rlvr are all switched off.")
    if "more-rl" in given.objectives and not (given.post_train and config.rlvr.enabled):
        raise UserError(
            "arm 'more-rl' spends its compute on RLVR: set compare.post_train=true and "
            "rlvr.enabled=true, or leave it out of compare.objectives."
        )
    if given.base_per_seed:
        _check_own_lineage(config, base, ref)
    else:
        _check_given(config, base, ref)


def _check_own_lineage(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    if base or ref:
        raise UserError(
            "compare.base_per_seed=true trains a base for every seed, and its plain post-trained "
            "model is the reference: leave --base and --ref out."
        )
    if not _post(config):
        raise UserError("compare.base_per_seed: with sft, dpo and rlvr off there is no reference.")
    if "sft" in config.compare.objectives and not config.sft.enabled:
        raise UserError("arm 'sft' needs an SFT model, and sft.enabled is false.")


def _check_given(config: Config, base: ModelRef | None, ref: ModelRef | None) -> None:
    if base is None:
        raise UserError(
            "compare needs --base CKPT, the base of all arms (or compare.base_per_seed=true, "
            "which trains one for every seed)."
        )
    own = {*WITHOUT_REFERENCE, *(["sft"] if config.compare.sft_ref else [])}
    needy = [arm for arm in config.compare.objectives if arm not in own]
    if needy and ref is None:
        raise UserError(f"arm '{needy[0]}' needs --ref CKPT, the RL-tuned model.")


def _post(config: Config) -> list[Stage]:
    return plan_post_train(config, "", "")


def _seeded(config: Config, seed: int) -> Config:
    mid = dataclasses.replace(config.mid_train, snapshots=config.compare.points, keep_points=0)
    return dataclasses.replace(config, seed=seed, mid_train=mid)


def _mid(config: Config, folder: str, arm: str, origin: Origin) -> list[Stage]:
    """The mid-training of an arm, after the score stages that it reads."""
    ref = None if arm in WITHOUT_REFERENCE else origin.sft_ref if arm == "sft" else origin.ref
    mid = dataclasses.replace(config.mid_train, objective=ARMS[arm])
    if arm == "kd":
        # It needs whole distributions, which no cache keeps.
        mid = dataclasses.replace(mid, reference="inline")
    decided = with_objective(dataclasses.replace(config, mid_train=mid), ref is not None)
    return mid_stages(decided, f"{folder}/10-mid-train", origin.base, ref, origin.small)


def _own_lineage(config: Config, folder: str, plain: str) -> list[Stage]:
    """A base of this seed, and the plain pipeline on it, whose end is the reference."""
    base = Stage("pretrain", f"{folder}/base", config)
    origin = Origin(base.name, None, None, None, plain)
    mids = _mid(config, plain, "ntp", origin)
    return [base, *mids, *plan_post_train(config, mids[-1].name, plain)]


def _arm(config: Config, folder: str, arm: str, origin: Origin) -> list[Stage]:
    if config.compare.budget == "flops":
        config = _with_tokens(config, _tokens_of_equal_flops(config, arm, origin))
    folder = f"{folder}/{arm}"
    stages = _mid(config, folder, arm, origin)
    mid = stages[-1].name
    points = config.compare.points
    for number in range(1, points + 1):
        name = f"{folder}/12-eval-{number}-of-{points + 1}"
        stages.append(Stage("evaluate", name, config, {"model": f"{mid}@{number}"}))
    stages.append(Stage("evaluate", f"{folder}/15-eval", config, {"model": mid}))
    if config.compare.post_train:
        stages += _post_trained(plan_post_train(config, mid, folder), folder)
    return stages


def _post_trained(post: list[Stage], folder: str) -> list[Stage]:
    last = post[-1]
    inputs: dict[str, str | ModelRef] = {"model": last.name}
    return [*post, Stage("evaluate", f"{folder}/50-eval", last.config, inputs, chat=True)]


def _more_rl(config: Config, folder: str, origin: Origin) -> list[Stage]:
    """The plain pipeline, with the FLOPs of ReMiT's reference in more steps of RLVR."""
    mids = _mid(config, origin.plain, "ntp", origin)
    before = [s for s in plan_post_train(config, mids[-1].name, origin.plain) if s.kind != "rlvr"]
    start = (before or mids)[-1].name
    rlvr = Stage("rlvr", f"{folder}/more-rl/40-rlvr", config, {"model": start})
    extra = _mid_flops(config, "remit", origin) - _mid_flops(config, "ntp", origin)
    more = max(1, round(extra * config.rlvr.steps / stage_flops(rlvr, 1)))
    longer = dataclasses.replace(config.rlvr, steps=config.rlvr.steps + more)
    rlvr = dataclasses.replace(rlvr, config=dataclasses.replace(config, rlvr=longer))
    return [*mids, *before, *_post_trained([rlvr], f"{folder}/more-rl")]


def _mid_flops(config: Config, arm: str, origin: Origin) -> float:
    """FLOPs of an arm's mid-training for each parameter, with its scoring.

    The reference counts as large as the base, which it is in this method.
    """
    # Whichever model it is, it costs the same, so that this needs no reference at hand.
    anything = dataclasses.replace(origin, ref=origin.base, sft_ref=origin.base)
    return sum(stage_flops(stage, 1) for stage in _mid(config, "", arm, anything))


def _tokens_of_equal_flops(config: Config, arm: str, origin: Origin) -> int:
    """Tokens for which an arm costs what ReMiT costs for `mid_train.tokens`, in whole steps."""
    budget = _mid_flops(config, "remit", origin)
    step = config.mid_train.global_batch * config.context_length
    tokens = config.mid_train.tokens * budget / _mid_flops(config, arm, origin)
    if tokens < step:
        raise UserError(
            f"arm '{arm}': compare.budget=flops leaves it {int(tokens)} of the mid_train.tokens = "
            f"{config.mid_train.tokens}, less than one step of {step} tokens. Give more tokens."
        )
    return round(tokens / step) * step


def _with_tokens(config: Config, tokens: int) -> Config:
    return dataclasses.replace(
        config, mid_train=dataclasses.replace(config.mid_train, tokens=tokens)
    )


def _sft_reference(config: Config, ref: ModelRef | None) -> ModelRef:
    """`compare.sft_ref`, or the SFT stage beside the reference's stage."""
    if config.compare.sft_ref:
        return find_checkpoint(config.compare.sft_ref, "compare.sft_ref")
    assert ref is not None
    beside = ref.folder.parent.parent / "20-sft" if ref.folder else None
    if beside is None or not StageDir(beside).is_complete():
        raise UserError(
            f"arm 'sft': no SFT stage lies beside the reference {ref.location}. Name the SFT model "
            "with compare.sft_ref=CKPT, or leave sft out of compare.objectives."
        )
    return find_checkpoint(str(beside), "compare.sft_ref")


def behind(stage: Stage, by_name: dict[str, Stage], *, whole: bool) -> Iterator[Stage]:
    """The stages that made what a stage reads, back to the mid-training or, if `whole`, the start.

    Stages that lie outside `by_name` are not followed.
    """
    if stage.kind == "mid_train":
        # A mid-training finds its scores by their fingerprint, not by an input.
        for name, scored in by_name.items():
            if name.startswith(f"{stage.name}-score"):
                yield scored
                if whole:
                    yield from behind(scored, by_name, whole=True)
        if not whole:
            return
    for role, given in stage.inputs.items():
        if role == CONTAMINATION:
            continue
        name = given.partition("@")[0] if isinstance(given, str) else ""
        if name in by_name:
            yield by_name[name]
            yield from behind(by_name[name], by_name, whole=whole)


def needed(stages: Sequence[Stage], known: set[tuple[str, int, str]]) -> list[Stage]:
    """The evaluations that are not `known` (arm, seed, point), with all that is behind them."""
    by_name = {stage.name: stage for stage in stages}
    kept: set[str] = set()
    for stage in stages:
        if stage.kind == "evaluate" and place(stage) not in known:
            kept |= {stage.name} | {s.name for s in behind(stage, by_name, whole=True)}
    return [s for s in stages if s.name in kept or (kept and s.kind == "contamination")]


def place(stage: Stage) -> tuple[str, int, str]:
    """Arm, seed and point of an evaluation.

    `.../12-eval-1-of-4` is the point `1/4`, `.../15-eval` is `mid`, `.../50-eval` is `post`.
    """
    folder, _, last = stage.name.rpartition("/")
    point = "mid" if last == "15-eval" else "post"
    if last.startswith("12-eval-"):
        point = last.removeprefix("12-eval-").replace("-of-", "/")
    return folder.rpartition("/")[2], stage.config.seed, point
