"""The kinds of stages, one row each with everything that is specific to that kind.

To add a kind, add a row here, a module in `pipelines/stages` with `run(job) -> result`, and a
section of the recipe in `pipelines/recipe/schema` (docs/guides/add-a-stage.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.plan import cost, dependencies, headlines
from pipelines.plan.stage import Stage
from pipelines.recipe.schema import Config

Result = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """A small chart of the report."""

    title: str
    unit: str  # values in `percent` are logged as shares from 0 to 1
    keys: tuple[str, ...]  # of a log line; the values of several are summed


@dataclass(frozen=True)
class Kind:
    """What the launcher needs to know about a kind of stage; a rank needs only its module."""

    name: str
    module: str
    section: str  # of the recipe, with its settings
    identity: tuple[str, ...]  # keys of the recipe that its result depends on, with all below them
    cost: Callable[[Stage, int], cost.Work]  # of a stage, given the parameters of the model
    headline: Callable[[Result], str]  # describes a finished stage in one line
    # Further fields of the identity.
    depends: Callable[[Config, dict[str, Any]], dict[str, Any]] = dependencies.nothing_more
    numerics_version: int = 1  # raise it when the mathematics of the stage changes
    title: str = ""  # label in the report's drawing of the flywheel; empty: not drawn
    facts: tuple[str, ...] = ()  # keys of the result that `--json` and the report show
    curves: tuple[Curve, ...] = ()  # charts of its log in the report
    launch_key: str = ""  # key in the recipe's `stages`; empty: always one rank
    trains: bool = False  # it runs optimizer steps, writes checkpoints and produces a model
    chat: bool = False  # its model is evaluated through the chat template
    post_step: str = ""  # number of its folder in post-training, which orders the steps
    asks: bool = False  # it reads evaluation questions, which must be available
    derived: bool = False  # it only reads other stages, and is run again when they change


KINDS = (
    Kind(
        "pretrain", "pipelines.stages.pretrain", "pretrain",
        identity=("sequence_length", "document_mask", "model", "tokenizer", "pretrain"),
        cost=cost.pretrain, headline=headlines.training,
        title="base", launch_key="pretrain", trains=True,
        facts=("parameters", "tokens", "tokens_per_second", "loss_last"),
        curves=(Curve("Pre-training: loss", "nats per token", ("loss",)),),
    ),
    Kind(
        "mid_train", "pipelines.stages.mid_train", "mid_train",
        identity=("sequence_length", "document_mask", "mid_train"), depends=dependencies.mid_train,
        cost=cost.mid_train, headline=headlines.training,
        title="mid-train", launch_key="mid_train", trains=True,
        facts=(
            "objective", "reference", "tokens", "tokens_per_second", "loss_last", "weight_mean",
            "weight_std",
        ),
        curves=(
            Curve("Mid-training: loss", "nats per token", ("loss",)),
            Curve("Mid-training: learning rate", "learning rate", ("learning_rate",)),
            Curve("Token weights: spread", "standard deviation", ("weight_std",)),
            Curve("Token weights: at the clip", "percent of tokens",
                  ("weight_at_low", "weight_at_high")),
            Curve("Reference minus learner", "mean of d, nats", ("d_mean",)),
            Curve("Mid-training: throughput", "tokens per second", ("tokens_per_second",)),
        ),
    ),
    Kind(
        "sft", "pipelines.stages.sft", "sft", identity=("sft",), depends=dependencies.sft,
        cost=cost.sft, headline=headlines.training,
        title="SFT", launch_key="sft", trains=True, chat=True, post_step="20",
        facts=("loss_first", "loss_last", "token_accuracy_first", "token_accuracy_last"),
        curves=(Curve("SFT: loss", "nats per token", ("loss",)),),
    ),
    Kind(
        "dpo", "pipelines.stages.dpo", "dpo", identity=("dpo",), depends=dependencies.dpo,
        cost=cost.dpo, headline=headlines.dpo,
        title="DPO", launch_key="dpo", trains=True, chat=True, post_step="30",
        facts=("loss_first", "loss_last", "heldout_pairs", "heldout_pair_accuracy"),
        curves=(Curve("DPO: loss", "nats", ("loss",)),),
    ),
    Kind(
        "rlvr", "pipelines.stages.rlvr", "rlvr", identity=("rlvr",), depends=dependencies.rlvr,
        numerics_version=2, cost=cost.rlvr, headline=headlines.rlvr,
        title="RLVR", launch_key="rlvr", trains=True, chat=True, post_step="40",
        facts=("status", "reward_first_quarter", "reward_last_quarter", "zero_variance_groups"),
        curves=(
            Curve("RLVR: reward", "mean reward", ("reward",)),
            Curve("RLVR: zero-variance groups", "percent of groups", ("frac_reward_zero_std",)),
        ),
    ),
    Kind(
        "score", "pipelines.stages.score", "mid_train",
        identity=("sequence_length", "document_mask"), depends=dependencies.score,
        cost=cost.score, headline=headlines.score, launch_key="score",
        facts=("scores", "tokens", "shards", "tokens_per_second"),
    ),
    Kind(
        "evaluate", "pipelines.stages.evaluate", "eval",
        identity=("sequence_length", "document_mask", "eval"), depends=dependencies.evaluate,
        numerics_version=3, cost=cost.evaluate, headline=headlines.evaluate,
        launch_key="eval", asks=True,
    ),
    Kind(
        "contamination", "pipelines.stages.contamination", "eval",
        identity=(), depends=dependencies.contamination,
        cost=cost.none, headline=headlines.contamination, launch_key="contamination", asks=True,
    ),
    Kind(
        "analyze", "pipelines.stages.analyze", "analysis",
        identity=("sequence_length", "document_mask", "analysis", "mid_train"),
        depends=dependencies.analyze, numerics_version=2,
        cost=cost.analyze, headline=headlines.analyze, derived=True,
        facts=("dynamics_reference", "missing"),
    ),
)  # fmt: skip
_BY_NAME = {kind.name: kind for kind in KINDS}
# The steps of post-training in order: number of the folder, kind.
POST_STEPS = tuple(sorted((kind.post_step, kind.name) for kind in KINDS if kind.post_step))


def kind_of(name: str) -> Kind:
    """The row of a kind; raises KeyError for an unknown name."""
    return _BY_NAME[name]


def is_kind(name: str) -> bool:
    """Whether this version knows the kind; other versions may have written others."""
    return name in _BY_NAME


def by_launch_key() -> dict[str, Kind]:
    """The kinds whose launch the recipe's `stages` can configure, by their key there."""
    return {kind.launch_key: kind for kind in KINDS if kind.launch_key}


def headline(result: Result) -> str:
    """A finished stage in one line."""
    return kind_of(result["kind"]).headline(result)
