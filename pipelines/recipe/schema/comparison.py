"""Keys of `compare`: its arms, and custom arms (variants)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.recipe.schema.setting import setting


@dataclass
class VariantConfig:
    """A custom arm: one of the arms of the table with some settings changed."""

    arm: str = setting(
        "remit", "arm to start from: ntp, kd, miniplm, rho1, sft or remit", result=False
    )
    set: list[str] = setting(
        list,
        "mid_train overrides for this arm only, such as [mid_train.remit.eps=0.5]",
        result=False,
    )
    base: str = setting(
        "",
        "model that mid-training starts from: an arm (its mid-trained model) or a CKPT; empty: the "
        "base",
        result=False,
    )
    ref: str = setting(
        "",
        "reference: an arm (its post-trained model), a stage of an arm such as ntp/20-sft, base, "
        "or a CKPT; empty: the reference of `arm`",
        result=False,
    )
    ref_seed: int = setting(
        0,
        "seed offset of the reference: take the arm that `ref` names from seed + ref_seed",
        result=False,
        low=0,
    )
    budget: Literal["", "tokens", "flops"] = setting(
        "", "what is held equal, as in compare.budget; empty: compare.budget", result=False
    )
    against: str = setting("ntp", "baseline: the arm that the tables compare it with", result=False)


@dataclass
class CompareConfig:
    arms: list[str] = setting(
        ["ntp", "kd", "miniplm", "rho1", "sft", "remit"],
        "arms to run: any of ntp, kd, miniplm, rho1, sft, remit, more-rl and the compare.variants",
        result=False,
    )
    variants: dict[str, VariantConfig] = setting(dict, "custom arms, by name", result=False)
    seeds: int = setting(
        3, "number of runs of each arm; their seeds count up from `seed`", result=False, low=1
    )
    budget: Literal["tokens", "flops"] = setting(
        "tokens",
        "what is equal for all arms: mid_train.tokens, or the FLOPs of ReMiT for that many tokens",
        result=False,
    )
    base_per_seed: bool = setting(
        False,
        "train a base for every seed and use its plain post-trained model as the reference",
        result=False,
    )
    sft_ref: str = setting(
        "",
        "reference CKPT of arm sft; empty: the SFT stage of the reference's own post-training",
        result=False,
    )
    small: str = setting("", "CKPT of the small model of MiniPLM; empty: the base", result=False)
    points: int = setting(
        3,
        "evaluations during the annealing of each arm, before the one at its end; they have no "
        "samples, and variants have no such evaluations",
        result=False,
        low=0,
    )
    post_train: bool = setting(
        False, "also post-train every arm and evaluate the result", result=False
    )
    post_points: bool = setting(
        False,
        "evaluate after SFT and after DPO too, not only after the last step of post-training",
        result=False,
    )
    rows: list[str] = setting(
        list,
        "rows.jsonl files of earlier runs; arms and seeds that they contain are not run again",
        result=False,
    )
